"""Timers: messages that an actor sends to itself later. Time comes in as an argument."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


MAX_STALE = 32
"""Replaced and cancelled timers that are kept in any case, lest cleaning up cost more than it frees."""


@dataclass(frozen=True, slots=True)
class _Timer:
    key: Hashable
    message: object
    interval: float | None


class Timers:
    """The timers of one incarnation; `self.timers` in an actor. They end with the incarnation.

    A timer has a key; setting it again replaces it. Its message goes before what waits in the
    mailbox and never finds it full. A message is handled by the time it was asked for or later:
    never while another one is.
    """

    def __init__(self, now: Callable[[], float], check: Callable[[object], None], wake: Callable[[], None]) -> None:
        self._now = now
        self._check = check
        self._wake = wake
        self._timers: dict[Hashable, _Timer] = {}
        self._due: list[tuple[float, int, _Timer]] = []
        self._number = 0

    def once(self, key: Hashable, seconds: float, message: object) -> None:
        """Have `message` handled after `seconds`.

        Raises ValueError for a negative time, UnhandledMessage when the actor has no handler for it.
        """
        self._set(_Timer(key, message, None), seconds)

    def every(self, key: Hashable, seconds: float, message: object) -> None:
        """Have `message` handled each `seconds`, first after that time.

        Beats that were missed while the actor was busy are left out. Raises as `once`, and for a
        period of 0.
        """
        if seconds == 0:
            raise ValueError("a timer that beats needs a period above 0")
        self._set(_Timer(key, message, seconds), seconds)

    def cancel(self, key: Hashable) -> bool:
        """Drop the timer; False when there is none. Its message is not handled after this, due or not."""
        return self._timers.pop(key, None) is not None

    def is_set(self, key: Hashable) -> bool:
        """Whether a timer with this key is waiting."""
        return key in self._timers

    def next_due(self) -> float:
        """When the next timer is due, infinity if there is none."""
        while self._due and self._timers.get(self._due[0][2].key) is not self._due[0][2]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else math.inf

    def is_due(self) -> bool:
        """Whether a timer is due now."""
        return bool(self._due) and self.next_due() <= self._now()

    @property
    def newest(self) -> int:
        """The number of the timer that was set last."""
        return self._number

    def take_due(self, now: float, newest: float = math.inf) -> object | None:
        """The message of a timer that is due at `now`, None when none is; a beating one is set anew.

        Those with a number above `newest` are passed over.
        """
        passed: list[tuple[float, int, _Timer]] = []
        while self.next_due() <= now and self._due[0][1] > newest:
            passed.append(heapq.heappop(self._due))
        found = self._take(now) if self.next_due() <= now else None
        for entry in passed:
            heapq.heappush(self._due, entry)
        return found

    def _take(self, now: float) -> object:
        due, _, timer = heapq.heappop(self._due)
        if timer.interval is None:
            del self._timers[timer.key]
        else:
            beats = math.floor((now - due) / timer.interval) + 1
            self._push(timer, due + beats * timer.interval)
        return timer.message

    def _set(self, timer: _Timer, seconds: float) -> None:
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"a timer takes a finite number of seconds of at least 0, not {seconds!r}")
        if timer.message is None:
            raise ValueError("a timer needs a message, and None is none")
        self._check(timer.message)
        self._timers[timer.key] = timer
        self._push(timer, self._now() + seconds)
        self._wake()

    def _push(self, timer: _Timer, due: float) -> None:
        self._number += 1
        if len(self._due) > MAX_STALE + 2 * len(self._timers):
            # One that is set again and again, or cancelled before it is due, would be kept until then.
            self._due = [entry for entry in self._due if self._timers.get(entry[2].key) is entry[2]]
            heapq.heapify(self._due)
        heapq.heappush(self._due, (due, self._number, timer))
