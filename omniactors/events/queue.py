"""What one subscriber has not read yet: a bounded queue that tells, in place, what it lost.

Pure but for the wake-up it calls. At any time matched = delivered + dropped + queued: the first
and the last follow from what is there, so no exception that interrupts a call can set them at odds.
What stands outside of the bound: replayed events, which are on request, and the losses told between
events.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import msgspec

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

QUEUE_BYTES = 16 * 1024 * 1024
"""About what the large events of one queue may occupy together; one of them alone always may."""


class Loss(msgspec.Struct, frozen=True, gc=False):
    """`lost` events (None: nobody can say how many) are missing between offsets `first` and `last`, both included."""

    lost: int | None
    first: int | None
    last: int
    why: LossReason


_Loss: TypeAlias = tuple[int | None, int | None, int, LossReason]
"""What a `Loss` is made of: who publishes replaces the last one with each event that finds no room."""


class SubscriberQueue:
    """Between a publisher that never waits and a reader that may: at most `capacity` live events.

    Large ones among them have `max_bytes` together, though one alone always has room.

    `wake` is called once, and forgotten, when there is something to read; a second call in a row
    must do nothing. `taken` is the offset up to which the reader has taken all. Raises ValueError
    for a capacity below 1 or an unknown overflow rule.
    """

    __slots__ = (
        "_backlog",
        "_heavy",
        "_heavy_bytes",
        "_live",
        "_losses",
        "_told",
        "capacity",
        "delivered",
        "end_reason",
        "max_bytes",
        "overflow",
        "taken",
        "wake",
    )

    def __init__(self, capacity: int, overflow: Overflow, max_bytes: int = QUEUE_BYTES) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"capacity must be an integer of at least 1, not {capacity!r}")
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise ValueError(f"max_bytes must be an integer of at least 1, not {max_bytes!r}")
        if overflow not in get_args(Overflow):
            allowed = ", ".join(repr(word) for word in get_args(Overflow))
            raise ValueError(f"overflow must be one of {allowed}, not {overflow!r}")
        # Plain numbers: they are compared where events are published.
        self.capacity = int.__int__(capacity)
        self.max_bytes = int.__int__(max_bytes)
        self.overflow: Overflow = overflow
        self.delivered = 0
        self.taken = 0
        self.end_reason: EndReason | None = None
        self.wake: Callable[[], object] | None = None
        self._backlog: deque[Event] = deque()
        self._live: deque[Event] = deque()
        # In the order of offsets; each stands before the first event whose offset is behind it.
        self._losses: deque[_Loss] = deque()
        self._told = 0
        # Offset and size of large events, some of which may have left `_live`.
        self._heavy: deque[tuple[int, int]] = deque()
        self._heavy_bytes = 0

    @property
    def queued(self) -> int:
        """Events that are ready to be read."""
        return len(self._backlog) + len(self._live)

    @property
    def dropped(self) -> int:
        """Events that matched and did not find room."""
        return self._told + sum(lost or 0 for lost, _, _, why in tuple(self._losses) if why == "overflow")

    @property
    def matched(self) -> int:
        """Events that were meant for this queue."""
        return self.delivered + self.dropped + self.queued

    @property
    def replaying(self) -> bool:
        """Whether replayed events wait to be read."""
        return bool(self._backlog)

    @property
    def stirs(self) -> bool:
        """Whether a reader would find something now, be it the end."""
        return self.end_reason is not None or bool(self._backlog or self._live or self._losses)

    @property
    def oldest_offset(self) -> int | None:
        """The offset of the next thing to read, None when there is nothing."""
        events = self._backlog or self._live
        if self._losses and (not events or self._losses[0][2] < events[0].offset):
            return self._losses[0][2]
        return events[0].offset if events else None

    def offer(self, event: Event) -> None:
        """Take a live event, or count what is dropped instead. Ignored once the queue has ended."""
        if self.end_reason is not None:
            return
        if len(self._live) >= self.capacity:
            self._overflow(event)
            return
        self._live.append(event)
        if self.wake is not None:
            self._wake()

    def offer_heavy(self, event: Event, size: int) -> None:
        """As `offer`, for an event that is so large that its bytes count."""
        if self.end_reason is not None:
            return
        while self._is_too_heavy(size):
            if self.overflow != "drop_oldest":
                self._overflow(event)
                return
            self._drop_oldest()
        self.offer(event)
        if self._live and self._live[-1] is event:
            self._heavy_bytes += size
            self._heavy.append((event.offset, size))

    def replay(self, events: Sequence[Event], *, loss: Loss | None = None) -> None:
        """Put past events before all live ones, behind what was replayed already; `loss` precedes them."""
        newest = self._backlog[-1].offset if self._backlog else self.taken
        if loss is not None:
            self._losses.append((loss.lost, loss.first, loss.last, loss.why))
        self._backlog.extend(event for event in events if event.offset > newest)

    def end(self, reason: EndReason) -> None:
        """Nothing comes after what is here; only the first reason counts."""
        if self.end_reason is None:
            self.end_reason = reason
            self._wake()

    def take(self) -> Event | Loss | None:
        """The next event or loss in order, or None when there is none now."""
        events = self._backlog or self._live
        if self._losses and (not events or self._losses[0][2] < events[0].offset):
            loss = Loss(*self._losses.popleft())
            self.taken = max(self.taken, loss.last)
            if loss.why == "overflow":
                self._told += loss.lost or 0
            return loss
        if not events:
            return None
        event = events.popleft()
        self.taken = event.offset
        self.delivered += 1
        return event

    def take_live(self, limit: int) -> list[Event]:
        """Up to `limit` live events; none when something else is to be told first, or there are none."""
        live = self._live
        if self._backlog or self._losses or not live:
            return []
        taken = [live.popleft() for _ in range(min(limit, len(live)))]
        self.taken = taken[-1].offset
        self.delivered += len(taken)
        return taken

    def discard(self) -> None:
        """Let go of everything unread: who leaves does not want it, so it is neither dropped nor matched."""
        self._backlog.clear()
        self._live.clear()
        self._heavy.clear()

    def repair(self, event: Event | None, size: int) -> None:
        """Complete what an exception may have interrupted: `event`, the newest, was meant for this queue or none."""
        losses, live = self._losses, self._live
        if self.overflow == "drop_oldest" and losses and live and losses[-1][2] >= live[0].offset:
            live.popleft()
        if event is not None:
            ends = [end[-1] for end in (self._backlog, live) if end]
            newest = max(self.taken, losses[-1][2] if losses else 0, *(end.offset for end in ends))
            if event.offset > newest:
                self.offer_heavy(event, size)
        if self.stirs:
            self._wake()

    def _is_too_heavy(self, size: int) -> bool:
        heavy, live = self._heavy, self._live
        while heavy and (not live or heavy[0][0] < live[0].offset):
            self._heavy_bytes -= heavy.popleft()[1]
        if not heavy:
            self._heavy_bytes = 0
        return bool(heavy) and self._heavy_bytes + size > self.max_bytes

    def _overflow(self, event: Event) -> None:
        losses, offset = self._losses, event.offset
        if self.overflow == "drop_oldest":
            self._drop_oldest()
            self._live.append(event)
            return
        # One loss stands for all that were refused in a row; each change is one step, which nothing interrupts.
        if losses:
            lost, first, last, why = losses[-1]
            if why == "overflow" and last > self._live[-1].offset:
                losses[-1] = ((lost or 0) + 1, first, offset, why)
                return
        losses.append((1, offset, offset, "overflow"))
        if self.overflow == "close":
            self.end("overflow")

    def _drop_oldest(self) -> None:
        """Let the oldest live event go; under this rule all losses to it stand before the first live event."""
        losses, offset = self._losses, self._live[0].offset
        if losses and losses[-1][3] == "overflow":
            lost, first, _, why = losses[-1]
            losses[-1] = ((lost or 0) + 1, first, offset, why)
        else:
            losses.append((1, offset, offset, "overflow"))
        self._live.popleft()

    def _wake(self) -> None:
        if self.wake is not None:
            # Called before it is forgotten: an exception in between must not leave the reader asleep.
            self.wake()
            self.wake = None
