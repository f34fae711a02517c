"""Retention: which past events a bus still knows, by count and size over all, and per run.

Pure. The ring serves a resume from a position, the histories a late comer to one run. Both take the
same event twice as once, so that whoever was interrupted may begin anew.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeAlias

from omniactors.events.event import Draft, Event, ReadOnlyDict

if TYPE_CHECKING:
    from collections.abc import Sequence

Kept: TypeAlias = Event | Draft

MAX_ID = 256
"""Characters of a run id, or of an event type, of which many are remembered."""
MAX_CLOSED_RUNS = 10_000
"""So many ended runs are remembered as ended; one beyond that is empty and live like any unknown run."""

HEAVY = 4096
"""Bytes from which on an event counts by its size, not only by number, wherever events are kept."""

EVENT_BYTES = 400
"""About what an event occupies without its values."""
_VALUE_BYTES = 64
"""About what one value, or one element of a container, occupies."""
_MAX_VALUES = 100_000
"""Values that are looked at; an event of more counts as larger than all that is kept."""
_HUGE = 1 << 40
_EXACT = 1000
"""Characters from which on a text is measured: one of them may take four bytes."""
_BIG = 1 << 64
"""An integer beyond this takes more room than any other value."""


class Ring:
    """The newest events of a bus, at most `max_events` of them and about `max_bytes`; the newest always stays.

    Offsets run without gaps, so an event's slot follows from its offset: a reader in the middle
    finds its place in O(1), which a deque does not give.
    """

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._slots: list[Kept | None] = [None] * max_events
        self._sizes = [0] * max_events
        self._max_bytes = max_bytes
        self._bytes = 0
        self.first = 1
        self.next = 1

    def __len__(self) -> int:
        return self.next - self.first

    def append(self, event: Kept, size: int) -> None:
        """Keep `event`, whose offset is `next`, and let go of the oldest ones that have no more room."""
        offset, sizes, slots = event.offset, self._sizes, len(self._slots)
        slot = offset % slots
        if offset - self.first == slots:  # the oldest one stands where this one goes
            self.first += 1
            self._bytes -= sizes[slot]
        self._slots[slot] = event
        sizes[slot] = size
        self._bytes += size
        self.next = offset + 1
        while self._bytes > self._max_bytes and self.first < offset:
            oldest = self.first % slots
            self._slots[oldest] = None
            self._bytes -= sizes[oldest]
            self.first += 1

    def repair(self, event: Kept, size: int) -> None:
        """Complete what an exception may have interrupted, of which `event` was the last."""
        self._bytes = sum(self._sizes[offset % len(self._sizes)] for offset in range(self.first, self.next))
        if event.offset >= self.next:
            self.append(event, size)

    def page(self, after: int, limit: int, *, max_bytes: float = math.inf) -> list[Kept]:
        """At most `limit` events in order, from the first kept one behind offset `after`; large ones one by one."""
        start = max(after + 1, self.first)
        stop = min(start + limit, self.next)
        slots, size = len(self._slots), 0
        found: list[Kept] = []
        for offset in range(start, stop):
            event = self._slots[offset % slots]
            size += self._sizes[offset % slots]
            if event is None or (found and size > max_bytes):
                break
            found.append(event)
        return found


class Histories:
    """The newest events of every run, for `max_runs` runs by least recent use, and which runs have ended.

    Large events of all runs together have `max_bytes`; beyond that the oldest of them go, and what is
    older in their runs.
    """

    def __init__(self, per_run: int, max_runs: int, max_bytes: int) -> None:
        self._per_run = per_run
        self._max_runs = max_runs
        self._max_bytes = max_bytes
        self._heavy: OrderedDict[int, tuple[str, int]] = OrderedDict()
        """Run and size of the large events that are kept, by offset."""
        self._heavy_bytes = 0
        # Lists, not deques: most runs are one task with three events, and a deque begins with room for 64.
        self._runs: OrderedDict[str, list[Kept]] = OrderedDict()
        self._closed: OrderedDict[str | int, None] = OrderedDict()

    def count(self, waiting: Sequence[Draft] = ()) -> int:
        """How many runs have a history; `waiting` as for `of`."""
        return min(self._max_runs, len({*tuple(self._runs), *(draft.run_id for draft in waiting)}))

    def append(self, event: Kept, size: int) -> None:
        """Keep the event in its run; a run that had ended is open again."""
        runs, run_id = self._runs, event.run_id
        events = runs.get(run_id)
        if events is None:
            runs[run_id] = [event]
            while len(runs) > self._max_runs:
                _, oldest = runs.popitem(last=False)
                if self._heavy:
                    self._forget(oldest)
        elif not events or event.offset > events[-1].offset:  # else it was kept when an exception interrupted this
            runs.move_to_end(run_id)
            events.append(event)
            excess = len(events) - self._per_run
            if excess > 0:
                if self._heavy:
                    self._forget(events[:excess])
                del events[:excess]
        if self._closed:
            # `_closed_key` written out: every event comes through here.
            self._closed.pop(run_id if len(run_id) <= MAX_ID else hash(run_id), None)
        if size > HEAVY:
            self._weigh_in(event, size)

    def use(self, run_id: str) -> None:
        """Count the run as used now, so that others are let go before it."""
        if run_id in self._runs:
            self._runs.move_to_end(run_id)

    def of(self, run_id: str, waiting: Sequence[Draft] = ()) -> tuple[Kept, ...]:
        """What is kept of a run, oldest first; `waiting` is what is about to come, for whoever cannot wait for it."""
        kept = tuple(self._runs.get(run_id, ()))
        if not waiting:
            return kept
        last = kept[-1].offset if kept else 0
        coming = (draft for draft in waiting if draft.run_id == run_id and draft.offset > last)
        return (*kept, *coming)[-self._per_run :]

    def close(self, run_id: str) -> None:
        """Remember that the run has ended."""
        closed, key = self._closed, _closed_key(run_id)
        closed[key] = None
        closed.move_to_end(key)
        while len(closed) > MAX_CLOSED_RUNS:
            closed.popitem(last=False)

    def is_closed(self, run_id: str) -> bool:
        """Whether the run is known to have ended."""
        return _closed_key(run_id) in self._closed

    def repair(self, event: Kept, size: int) -> None:
        """Complete what an exception may have interrupted, of which `event` was the last."""
        self._heavy_bytes = sum(size for _, size in self._heavy.values())
        self.append(event, size)

    def _weigh_in(self, event: Kept, size: int) -> None:
        """Note a large event, and let go of the oldest that have no more room, with what is older in their runs."""
        heavy = self._heavy
        if event.offset not in heavy:
            heavy[event.offset] = (event.run_id, size)
            self._heavy_bytes += size
        while len(heavy) > 1 and self._heavy_bytes > self._max_bytes:
            oldest, (run_id, _) = next(iter(heavy.items()))
            events = self._runs.get(run_id, [])
            count = sum(event.offset <= oldest for event in events)
            self._forget(events[:count])
            self._weigh_out(oldest)  # an exception may have left it behind
            del events[:count]

    def _weigh_out(self, offset: int) -> None:
        _, size = self._heavy.pop(offset, ("", 0))
        self._heavy_bytes -= size

    def _forget(self, events: Sequence[Kept]) -> None:
        for event in events:
            self._weigh_out(event.offset)


def _closed_key(run_id: str) -> str | int:
    """What is remembered of an ended run: its id, or of a long one only the hash, so that it takes little room."""
    return run_id if len(run_id) <= MAX_ID else hash(run_id)


def approximate_size(event: Kept) -> int:
    """Bytes that an event occupies, about, with all that JSON knows in it; other objects are not looked into."""
    if isinstance(event, Draft):
        return EVENT_BYTES + event.weight
    size = EVENT_BYTES + len(event.run_id) + len(event.event_type) + len(event.data) * _VALUE_BYTES
    for value in event.data.values():
        kind = type(value)
        if kind is str:
            size += len(value) if len(value) < _EXACT else value.__sizeof__()
        elif kind is int:
            if not -_BIG < value < _BIG:
                size += value.__sizeof__()
        elif kind is not float and kind is not bool:
            size += _size_inside(value)
    return size


def _size_inside(value: Any) -> int:  # noqa: ANN401 -- any value is fine
    """As `approximate_size`, of one value that may be a container."""
    size, count, pending = 0, 0, [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind is dict or kind is ReadOnlyDict:
            inside: Sequence[Any] = [*item, *item.values()]
        elif kind is list or kind is tuple:
            inside = item
        else:
            if kind is str or kind is bytes or kind is bytearray or kind is int:
                size += item.__sizeof__()
            continue
        count += len(inside)
        if count > _MAX_VALUES:
            return _HUGE
        size += len(inside) * _VALUE_BYTES
        pending.extend(inside)
    return size
