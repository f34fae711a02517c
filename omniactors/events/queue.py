"""What one subscriber has not read yet: a bounded queue that tells, in place, what it lost.

Pure but for the wake-up it calls. At any time matched = delivered + dropped + queued. What stands
outside of the bound: replayed events, which are on request, and the losses told between events.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omniactors.events.event import Event

Overflow = Literal["drop_newest", "drop_oldest", "close"]
"""What a full queue does with one more event: not take it, make room for it, or end the subscription."""

EndReason = Literal["run-closed", "bus-closed", "overflow", "left"]
"""Why nothing more will come: the run ended, the bus did, the queue was full under "close", the subscriber left."""

LossReason = Literal["overflow", "evicted", "epoch", "threads"]
"""Why events are missing: the subscriber's queue was full; they are older than what is kept; the position is of
another bus; another thread published faster than they were taken in."""


@dataclass(frozen=True)
class Loss:
    """`lost` events (None: nobody can say how many) are missing between offsets `first` and `last`, both included."""

    lost: int | None
    first: int | None
    last: int
    why: LossReason


class _Tally:
    """Drops in a row, counted until they are told. Mutable, as it is on a publisher's path."""

    __slots__ = ("first", "last", "lost")

    def __init__(self) -> None:
        self.lost = 0
        self.first = 0
        self.last = 0

    def add(self, offset: int) -> None:
        if not self.lost:
            self.first = offset
        self.lost += 1
        self.last = offset

    def tell(self) -> Loss:
        loss = Loss(self.lost, self.first, self.last, "overflow")
        self.lost = 0
        return loss


class SubscriberQueue:
    """Between a publisher that never waits and a reader that may: at most `capacity` live events.

    `wake` is called once, and forgotten, when there is something to read. Raises ValueError for a
    capacity below 1 or an unknown overflow rule.
    """

    __slots__ = (
        "_backlog",
        "_backlog_events",
        "_head",
        "_live",
        "_live_events",
        "_tail",
        "capacity",
        "delivered",
        "dropped",
        "end_reason",
        "matched",
        "overflow",
        "wake",
    )

    def __init__(self, capacity: int, overflow: Overflow) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"capacity must be an integer of at least 1, not {capacity!r}")
        if overflow not in get_args(Overflow):
            allowed = ", ".join(repr(word) for word in get_args(Overflow))
            raise ValueError(f"overflow must be one of {allowed}, not {overflow!r}")
        self.capacity = capacity
        self.overflow: Overflow = overflow
        self.matched = 0
        self.delivered = 0
        self.dropped = 0
        self.end_reason: EndReason | None = None
        self.wake: Callable[[], object] | None = None
        self._backlog: deque[Event | Loss] = deque()
        self._backlog_events = 0
        self._live: deque[Event | Loss] = deque()
        self._live_events = 0
        self._head = _Tally()  # what drop_oldest took from the front of `_live`
        self._tail = _Tally()  # what was refused behind its end

    @property
    def queued(self) -> int:
        """Events that are ready to be read."""
        return self._backlog_events + self._live_events

    @property
    def replaying(self) -> bool:
        """Whether replayed events wait to be read."""
        return bool(self._backlog)

    @property
    def oldest_offset(self) -> int | None:
        """The offset of the next thing to read, None when there is nothing."""
        for items in (self._backlog, self._live):
            if items:
                first = items[0]
                return first.last if isinstance(first, Loss) else first.offset
        return None

    def offer(self, event: Event) -> None:
        """Take a live event, or count what is dropped instead. Ignored once the queue has ended."""
        if self.end_reason is not None:
            return
        self.matched += 1
        if self._live_events >= self.capacity:
            self._overflow(event)
            return
        if self._tail.lost:
            self._live.append(self._tail.tell())
        self._live.append(event)
        self._live_events += 1
        if self.wake is not None:
            self._wake()

    def replay(self, events: Sequence[Event], *, loss: Loss | None = None) -> None:
        """Put past events before all live ones, behind what was replayed already; `loss` precedes them."""
        if loss is not None:
            self._backlog.append(loss)
        self._backlog.extend(events)
        self._backlog_events += len(events)
        self.matched += len(events)

    def end(self, reason: EndReason) -> None:
        """Nothing comes after what is here; only the first reason counts."""
        if self.end_reason is None:
            self.end_reason = reason
            if self.wake is not None:
                self._wake()

    def take(self) -> Event | Loss | None:
        """The next event or loss in order, or None when there is none now."""
        if self._backlog:
            item = self._backlog.popleft()
            if not isinstance(item, Loss):
                self._backlog_events -= 1
        elif self._head.lost:
            return self._head.tell()
        elif self._live:
            item = self._live.popleft()
            if not isinstance(item, Loss):
                self._live_events -= 1
        elif self._tail.lost:
            return self._tail.tell()
        else:
            return None
        if not isinstance(item, Loss):
            self.delivered += 1
        return item

    def take_batch(self, limit: int) -> list[Event | Loss]:
        """Up to `limit` of what `take` would give, one after another."""
        batch: list[Event | Loss] = []
        if not self._backlog and not self._head.lost and not self._tail.lost:
            live = self._live
            # The common case, of live events only, written out: half of what reading one costs is the call.
            batch = [live.popleft() for _ in range(min(limit, len(live)))]
            taken = sum(type(item) is not Loss for item in batch)
            self._live_events -= taken
            self.delivered += taken
            return batch
        while len(batch) < limit and (item := self.take()) is not None:
            batch.append(item)
        return batch

    def discard(self) -> None:
        """Let go of everything unread: who leaves does not want it, so it is neither dropped nor matched."""
        self.matched -= self.queued
        self._backlog.clear()
        self._live.clear()
        self._backlog_events = self._live_events = 0

    def _overflow(self, event: Event) -> None:
        self.dropped += 1
        if self.overflow != "drop_oldest":
            self._tail.add(event.offset)
            if self.overflow == "close":
                self.end("overflow")
            return
        oldest = self._live.popleft()
        # Only events are here: under this rule no loss is ever written behind the end.
        self._head.add(oldest.last if isinstance(oldest, Loss) else oldest.offset)
        self._live.append(event)

    def _wake(self) -> None:
        wake, self.wake = self.wake, None
        if wake is not None:
            wake()
