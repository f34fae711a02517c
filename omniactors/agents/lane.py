"""The event lane: where the router puts an agent's events, and its instances take them.

Bounded by credit: the router never takes more from a stream than the lane has room for.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from omniactors.actors.lanes import Lane
from omniactors.streams.envelope import EventEnvelope
from omniactors.streams.settlement import EntryKey

if TYPE_CHECKING:
    from collections.abc import Callable

RATE_HORIZON = 0.1
"""Seconds of work to hold in memory: enough to hide a fetch, little enough to hand over at a stop."""
QUANTUM = 32
"""Events that an agent with a backlog may hold as soon as its handler is known to be quick enough for them, however
low its share of the processor: of many agents that take turns, each gets enough at a time to be worth asking for."""
TRUST = 4
"""So many times what it has handled of its backlog so far: the next ones may take longer than the last."""
WAITING_BYTES = 64 << 20
"""Bytes of events that may wait in memory, by the largest that came lately."""
RATE_SMOOTHING = 0.3
RATE_INTERVAL = 0.005
"""Seconds between two readings of the rate; shorter ones would measure the batches, not the agent."""


class Delivery(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One event of `size` bytes on its way to a handler; `ordering` is its key, as JSON, None when it has none."""

    key: EntryKey
    event: EventEnvelope[Any]
    ordering: str | None = None
    size: int = 0


class Suspect(NamedTuple):
    """An event that may end its process, and how often that has happened."""

    crashes: int
    delivery: Delivery


class EventLane(Lane):
    """The events that one agent holds. Its instances pull; events of one ordering key wait for each other.

    `held` counts every event from its fetch to its settlement: waiting here, being handled, being
    written. Together they never exceed `limit`.
    """

    def __init__(self, capacity: int, concurrency: int, on_room: Callable[[], None]) -> None:
        super().__init__()
        self.capacity = capacity
        self.held = 0
        self.handling = 0
        self.is_closed = False
        """Whether its agent has given up."""
        self.is_suspended = False
        """Whether its agent is paused, as of the last fetch."""
        self._concurrency = concurrency
        self._least = min(capacity, 2 * concurrency)
        self._on_room = on_room
        self._queue: deque[Delivery] = deque()
        self._busy: dict[str, deque[Delivery]] = {}
        self._suspects: list[Suspect] = []
        self._seconds: float | None = None
        """What one event takes a handler, lately; None before the first."""
        self._streak = 0
        """Events handled since there was nothing more to fetch."""
        self._size = 0
        """Bytes of the largest event that came lately."""
        self._rate = 0.0
        self._settled_since = 0
        self._rate_time: float | None = None

    @property
    def limit(self) -> int:
        """How many events to hold: twice the concurrency, or what is worked off in RATE_HORIZON seconds.

        The latter is what was settled lately in so long a time; and up to QUANTUM, with a backlog, what
        the handlers would be done with by then if nobody else had the processor. Of large events it is what
        the handlers are at, and WAITING_BYTES beside.
        """
        quick = 0
        if self._streak and self._seconds is not None:
            alone = self._concurrency * RATE_HORIZON
            quick = QUANTUM if self._seconds * QUANTUM < alone else int(alone / self._seconds)
        limit = min(self.capacity, max(self._least, int(self._rate * RATE_HORIZON), min(quick, TRUST * self._streak)))
        return min(limit, self._concurrency + WAITING_BYTES // self._size) if self._size else limit

    @property
    def credit(self) -> int:
        """How many events to fetch now.

        0 until a good part of the limit is free, so that fetches are worth it, or an instance is idle.
        """
        free = self.limit - self.held
        is_shut = self.is_closed or self.is_suspended
        is_worth_it = free >= max(1, self.limit // 4) or self.held < self._concurrency
        return free if is_worth_it and not is_shut else 0

    @property
    def suspects(self) -> int:
        """How many events wait here to be alone in this process."""
        return len(self._suspects)

    def put(self, delivery: Delivery) -> None:
        """Take in an event that was fetched with this lane's credit."""
        self.held += 1
        self._size = max(self._size, delivery.size)
        self._queue.append(delivery)
        self.wake_one()

    def put_suspect(self, suspect: Suspect) -> None:
        """Take in an event that is to be handled with nothing beside it; it waits for `begin_suspect`."""
        self.held += 1
        self._suspects.append(suspect)

    def next_suspect(self) -> Suspect | None:
        """The one with the fewest crashes, of each ordering key the first; among equals the one that waited longest.

        So deaths that come from outside, again and again, do not meet the same innocent each time.
        """
        firsts: dict[object, Suspect] = {}
        for suspect in self._suspects:
            delivery = suspect.delivery
            firsts.setdefault(delivery.key if delivery.ordering is None else delivery.ordering, suspect)
        return min(firsts.values(), key=_crashes, default=None)

    def clear_suspects(self, kept: Suspect) -> list[Delivery]:
        """Take out the others that wait to be alone; they still count as held until they are settled."""
        others = [suspect.delivery for suspect in self._suspects if suspect is not kept]
        self._suspects = [suspect for suspect in self._suspects if suspect is kept]
        return others

    def begin_suspect(self, suspect: Suspect) -> None:
        """Nothing else is at work: this one may go."""
        self._suspects.remove(suspect)
        self._queue.append(suspect.delivery)
        self.wake_one()

    @property
    def has_work(self) -> bool:
        """Whether there may be an event to take."""
        return bool(self._queue)

    def take(self) -> Delivery | None:
        """The next event whose ordering key is free, or None."""
        while self._queue:
            delivery = self._queue.popleft()
            if delivery.ordering is not None:
                if delivery.ordering in self._busy:
                    self._busy[delivery.ordering].append(delivery)
                    continue
                self._busy[delivery.ordering] = deque()
            self.handling += 1
            return delivery
        return None

    def describe(self, item: object) -> str:
        """The event of a delivery."""
        return f"event {item.event.id} of {item.event.topic}" if isinstance(item, Delivery) else super().describe(item)

    def handled(self, delivery: Delivery, seconds: float | None) -> None:
        """The handler is done with an event that was taken; the next one of its key may go.

        `seconds` is how long it took to succeed, None when it did not.
        """
        self.handling -= 1
        if seconds is not None:
            self._streak += 1
            before = seconds if self._seconds is None else self._seconds
            self._seconds = before + RATE_SMOOTHING * (seconds - before)
        if delivery.ordering is not None:
            waiting = self._busy.pop(delivery.ordering)
            if waiting:
                first = waiting.popleft()
                # Those behind it go back in front of the queue, where they came from.
                self._queue.extendleft(reversed(waiting))
                self._queue.appendleft(first)
                self.wake_one()

    def settled(self, count: int, now: float) -> None:
        """`count` events are written, or given back; there is room for others. `now` is in seconds of any clock."""
        self.held -= count
        self._measure(count, now)
        self._on_room()

    def drained(self) -> None:
        """There was nothing more to fetch: what comes next may be of another kind."""
        self._streak = 0

    def clear(self) -> list[Delivery]:
        """Take out everything that no handler has begun; it still counts as held until it is settled."""
        waiting = [*self.clear_others(), *(suspect.delivery for suspect in self._suspects)]
        self._suspects.clear()
        return waiting

    def clear_others(self) -> list[Delivery]:
        """The same, but for suspects that wait to be alone."""
        waiting = [*self._queue, *(delivery for queue in self._busy.values() for delivery in queue)]
        self._queue.clear()
        for queue in self._busy.values():
            queue.clear()
        return waiting

    def reset(self) -> None:
        """Hold nothing: what an earlier run left was released with its consumer."""
        self.held = self.handling = 0
        self.is_closed = self.is_suspended = False
        self._suspects.clear()
        self._queue.clear()
        self._busy.clear()

    def _measure(self, count: int, now: float) -> None:
        self._settled_since += count
        if self._rate_time is None:
            self._rate_time = now
        elapsed = now - self._rate_time
        if elapsed >= RATE_INTERVAL:
            self._rate += RATE_SMOOTHING * (self._settled_since / elapsed - self._rate)
            self._settled_since = 0
            self._rate_time = now
            self._size = self._size * 9 // 10


def _crashes(suspect: Suspect) -> int:
    return suspect.crashes
