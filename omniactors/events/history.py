"""Retention: which past events a bus still knows, by count and size over all, and per run.

Pure. The ring serves a resume from a position, the histories a late comer to one run.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from omniactors.events.event import Draft, Event

if TYPE_CHECKING:
    from collections.abc import Sequence

Kept: TypeAlias = Event | Draft

MAX_CLOSED_RUNS = 10_000
"""So many ended runs are remembered as ended; one beyond that is empty and live like any unknown run."""

_EVENT_BYTES = 400
"""About what an event occupies without its values."""
_VALUE_BYTES = 64
"""About what one value, or one element of a container, occupies."""
_ELEMENT_BYTES: dict[type, int] = {str: 1, bytes: 1, dict: _VALUE_BYTES, list: _VALUE_BYTES, tuple: _VALUE_BYTES}
"""Looked up by exact type: this is on every publisher's path, and isinstance took four times as long."""


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

    def append(self, event: Kept) -> None:
        """Keep `event`, whose offset is `next`, and let go of the oldest ones that have no more room."""
        offset, sizes, slots = event.offset, self._sizes, len(self._slots)
        size = _EVENT_BYTES + event.weight if isinstance(event, Draft) else approximate_size(event)
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

    def page(self, after: int, limit: int) -> list[Kept]:
        """At most `limit` events in order, from the first kept one behind offset `after`."""
        start = max(after + 1, self.first)
        stop = min(start + limit, self.next)
        slots = len(self._slots)
        found = (self._slots[offset % slots] for offset in range(start, stop))
        return [event for event in found if event is not None]


class Histories:
    """The newest events of every run, for `max_runs` runs by least recent use, and which runs have ended."""

    def __init__(self, per_run: int, max_runs: int) -> None:
        self._per_run = per_run
        self._max_runs = max_runs
        # Lists, not deques: most runs are one task with three events, and a deque begins with room for 64.
        self._runs: OrderedDict[str, list[Kept]] = OrderedDict()
        self._closed: OrderedDict[str, None] = OrderedDict()

    def count(self, waiting: Sequence[Draft] = ()) -> tuple[int, int]:
        """How many of the runs that have a history have not ended, and how many have one; `waiting` as for `of`."""
        ended = {draft.run_id: draft.ends_run for draft in waiting}
        runs = list(dict.fromkeys([*tuple(self._runs), *ended]))[-self._max_runs :]
        return sum(not ended.get(run_id, run_id in self._closed) for run_id in runs), len(runs)

    def append(self, event: Kept) -> None:
        """Keep the event in its run; a run that had ended is open again."""
        self._keep(event)
        self._closed.pop(event.run_id, None)

    def extend(self, drafts: Sequence[Draft]) -> None:
        """As `append` for each, and `close` where one ends its run; what others push out again is not kept at all."""
        by_last_use: dict[str, Draft] = {}
        for draft in reversed(drafts):
            by_last_use.setdefault(draft.run_id, draft)
        staying = set(islice(by_last_use, self._max_runs))
        for draft in drafts:
            if draft.run_id in staying:
                self._keep(draft)
        for run_id, last in reversed(by_last_use.items()):
            if last.ends_run:
                self.close(run_id)
            else:
                self._closed.pop(run_id, None)

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
        closed = self._closed
        closed[run_id] = None
        closed.move_to_end(run_id)
        if len(closed) > MAX_CLOSED_RUNS:
            closed.popitem(last=False)

    def is_closed(self, run_id: str) -> bool:
        """Whether the run is known to have ended."""
        return run_id in self._closed

    def _keep(self, event: Kept) -> None:
        runs, run_id = self._runs, event.run_id
        events = runs.get(run_id)
        if events is None:
            runs[run_id] = [event]
            if len(runs) > self._max_runs:
                runs.popitem(last=False)
        elif event.offset > events[-1].offset:  # else it was kept when an exception interrupted `extend`
            runs.move_to_end(run_id)
            events.append(event)
            if len(events) > self._per_run:
                del events[0]


def approximate_size(event: Event) -> int:
    """Bytes that an event occupies, about: texts and containers count by their length, one level deep."""
    data = event.data
    size = _EVENT_BYTES + len(data) * _VALUE_BYTES
    for value in data.values():
        element = _ELEMENT_BYTES.get(type(value))
        if element is not None:
            size += len(value) * element
    return size
