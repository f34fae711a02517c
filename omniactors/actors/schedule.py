"""The restart schedule: how many restarts are too many, and when those that were put off are due.

Pure: time and chance come in as arguments.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import TYPE_CHECKING

from omniactors.actors.rules import RestartWindow

if TYPE_CHECKING:
    from omniactors.actors.slot import Slot
    from omniactors.actors.specs import Flags


class RestartSchedule:
    """The restart window of one supervisor, and the backoffs of its children.

    The window's clock stands still while a child waits for its backoff. Otherwise a backoff longer
    than the period would let a child that always fails go on for ever.
    """

    def __init__(self, flags: Flags) -> None:
        self._backoff = flags.backoff
        self._window = RestartWindow(flags.intensity)
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Slot]] = []
        self._waiting: dict[Slot, int] = {}
        self._waiting_since = 0.0
        self._waited = 0.0

    def allow(self, now: float) -> bool:
        """Count one restart; False when it is one too many."""
        return self._window.allow(self._clock(now))

    def has_room(self, now: float) -> bool:
        """Whether one restart more is allowed; counts none."""
        return self.count(now) < self._window.intensity.restarts

    def count(self, now: float) -> int:
        """How many restarts the window holds."""
        return self._window.count(self._clock(now))

    def delay(self, slot: Slot, now: float, random: float) -> float:
        """Seconds to wait before the slot is started again, after one more failure."""
        backoff = slot.spec.backoff or self._backoff
        if backoff is None:
            return 0.0
        if slot.ready_at is not None and now - slot.ready_at >= backoff.reset_after:
            slot.failures = 0
        slot.failures += 1
        return backoff.delay(slot.failures, random)

    def put_off(self, slot: Slot, delay: float, now: float) -> None:
        """The slot's restart is due in `delay` seconds."""
        if not self._waiting:
            self._waiting_since = now
        number = self._waiting[slot] = next(self._numbers)
        heapq.heappush(self._due, (now + delay, number, slot))

    def call_off(self, slot: Slot, now: float) -> None:
        """The slot's restart is not due any more; harmless when it was not put off."""
        if self._waiting.pop(slot, None) is not None and not self._waiting:
            self._waited += now - self._waiting_since
            self._due.clear()

    def put_off_now(self) -> list[Slot]:
        """The slots whose restart is due later."""
        return list(self._waiting)

    def next_due(self) -> float:
        """When `take_due` has something; infinity for never."""
        self._forget_called_off()
        return self._due[0][0] if self._due else math.inf

    def take_due(self, now: float) -> Slot | None:
        """A slot whose restart is due now, or None."""
        if self.next_due() > now:
            return None
        slot = self._due[0][2]
        self.call_off(slot, now)
        return slot

    def _forget_called_off(self) -> None:
        while self._due and self._waiting.get(self._due[0][2]) != self._due[0][1]:
            heapq.heappop(self._due)

    def _clock(self, now: float) -> float:
        waiting = now - self._waiting_since if self._waiting else 0.0
        return now - self._waited - waiting
