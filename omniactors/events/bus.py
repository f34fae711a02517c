"""The event bus: `publish` tells every watcher at once, waits for none, and counts what one loses."""

from __future__ import annotations

import os
import secrets
import socket
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from omniactors.errors import TooManySubscribers
from omniactors.events.audience import Audience
from omniactors.events.context import current_run
from omniactors.events.entrance import Entrance
from omniactors.events.event import GAP, Draft, Event, parse_position, plain_text, position
from omniactors.events.history import EVENT_BYTES, HEAVY, Histories, Ring, approximate_size
from omniactors.events.patterns import Selection, Where, parse_patterns
from omniactors.events.queue import QUEUE_BYTES, EndReason, Loss, Overflow, SubscriberQueue
from omniactors.events.statistics import BusStats, SubscriberStats
from omniactors.events.subscription import Subscriber, Subscription

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

RING_EVENTS = 8192
"""So many events can be resumed from: some seconds of a busy system, hours of a quiet one."""
RING_BYTES = 32 * 1024 * 1024
"""Large events are kept for a shorter time instead of filling the memory."""
HISTORY_BYTES = 32 * 1024 * 1024
"""About what the large events in the histories of all runs may occupy together."""
REPLAY_PAGE = 256
"""Events that a resume reads at a time: what a reader holds of the past at once."""
REPLAY_BYTES = 1024 * 1024
"""The same in bytes, about; one event at least."""
QUIET_EVENTS = 1024
"""Drafts that wait, while nobody subscribes, to be admitted together."""
QUIET_WEIGHT = 4096
"""Bytes of a draft that may wait so: more would be kept for as long as it waits, beside what the ring may keep."""


class _Packed(msgspec.Struct, frozen=True):
    """An event that waits to be admitted, with what was true where it was published."""

    event: Event
    run_id: str
    timestamp: float


class _CloseRun(msgspec.Struct, frozen=True):
    run_id: str


class _CloseBus(msgspec.Struct, frozen=True):
    pass


_Item = Draft | Event | _Packed | _CloseRun | _CloseBus


class EventBus:
    """Events of one process, for any number of watchers.

    Works by itself in any trio program: `publish` needs no running task, and no trio. In a system
    `run` is its supervised task. `max_queue_size` bounds each subscription (unless it names its own
    capacity) and the line of events from other threads; per run the newest `history_per_run`
    events are kept, for `max_runs_retained` runs by least recent use. One bus serves one trio run
    at a time, and any number of runs one after another.
    """

    def __init__(
        self,
        max_queue_size: int = 1024,
        history_per_run: int = 500,
        max_runs_retained: int = 200,
        max_global_subscribers: int = 50,
        *,
        source: str = "",
    ) -> None:
        limits = (max_queue_size, history_per_run, max_runs_retained, max_global_subscribers)
        if min(limits) < 1:
            raise ValueError(f"every limit of an EventBus must be at least 1, not {limits}")
        self.made_with: Final = (*limits, source)
        _alive.add(weakref.ref(self, _alive.discard))
        self.epoch: Final = secrets.token_hex(4)
        self.source: Final = source or f"{socket.gethostname()}:{os.getpid()}"
        self._max_queue_size = max_queue_size
        self._max_global = max_global_subscribers
        self._head = 0
        self._newest: Event | Draft | None = None
        """What got the newest offset: to set this is to publish it, and whatever then interrupts is completed later."""
        self._quiet: deque[Draft] = deque()
        """Drafts that came while nobody subscribed, and have no offset yet."""
        self._closed = False
        self._ring = Ring(RING_EVENTS, RING_BYTES)
        self._histories = Histories(history_per_run, max_runs_retained, HISTORY_BYTES)
        self._entrance = Entrance[_Item](
            max_queue_size,
            self._admit,
            self._admit_loss,
            pack=_pack,
            weigh=_weigh,
            admitted=lambda: self._head,
            repair=self._repair,
        )
        self._audience = Audience()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.head} published, {len(self._audience)} subscribers"
        return f"<EventBus {state}>"

    @property
    def head(self) -> int:
        """The offset of the newest event, 0 before the first."""
        return self._head + len(self._quiet)

    def publish(self, event: Event) -> None:
        """Tell every watcher; from any thread, at any time. Never blocks, and never fails; TypeError for no event.

        In the thread of the trio run that reads, and wherever none does, the event is out when this
        returns. From another thread it follows within the next turn of that run; when more wait
        than `max_queue_size`, or too many bytes, it is lost, and a `bus.gap` with the reason
        "threads" says so. An exception that a signal handler raises meanwhile comes out of this
        call; the event is then out to everybody, or to nobody.
        """
        if type(event) is not Event:
            event = _plain_event(event)
        self._entrance.enter(event)

    def publish_draft(self, draft: Draft) -> None:
        """As `publish`, for an event that is written out only for those who read it.

        While nobody subscribes it only waits for whoever asks next: who publishes pays next to nothing.
        """
        if self._audience or self._closed or not self._entrance.is_clear:
            self._entrance.enter(draft)
            return
        self._quiet.append(draft)
        if len(self._quiet) >= QUIET_EVENTS or draft.weight > QUIET_WEIGHT:
            self._settle_down()

    def publish_drafts(self, drafts: Sequence[Draft]) -> None:
        """As many `publish_draft`, at less cost."""
        if self._audience or self._closed or not self._entrance.is_clear:
            self._entrance.enter(*drafts)
            return
        self._quiet.extend(drafts)
        if len(self._quiet) >= QUIET_EVENTS or [draft for draft in drafts if draft.weight > QUIET_WEIGHT]:
            self._settle_down()

    def subscribe(
        self,
        run_id: str | None = None,
        *,
        types: Iterable[str] | str | None = None,
        topics: Iterable[str] | str | None = None,
        since: str | None = None,
        where: Mapping[str, Any] | None = None,
        capacity: int | None = None,
        max_bytes: int = QUEUE_BYTES,
        overflow: Overflow = "drop_newest",
    ) -> Subscription:
        """Events of one run (its history first, to the end of its stream), or of all that match.

        `types` (or `topics`, the same) are patterns: `*` is one token, `>` the tail. `where` are
        equalities such as `{"data.agent": "greeter"}`. `since` is a position, `epoch-offset`: what
        came after it and is still kept is replayed first. A subscription holds up to `capacity`
        unread events, and about `max_bytes` of large ones; what `overflow` then drops is counted and
        told. Raises ValueError for an argument that makes no sense. A subscription to a closed bus ends at once.
        """
        if types is not None and topics is not None:
            raise ValueError("types and topics are two names of one thing; give one of them")
        wanted = types if types is not None else topics
        selection = Selection(
            run_id=None if run_id is None else plain_text("a run_id", run_id),
            types=None if wanted is None else parse_patterns(wanted),
            where=Where.of(where) if where else None,
        )
        queue = SubscriberQueue(self._max_queue_size if capacity is None else capacity, overflow, max_bytes)
        since_position = None if since is None else parse_position(since)
        return self._subscribed(Subscriber(queue, selection, counted=False), since_position)

    def subscribe_global(self, *, capacity: int | None = None, overflow: Overflow = "drop_newest") -> Subscription:
        """Every event from now on. Raises TooManySubscribers beyond `max_global_subscribers`."""
        queue = SubscriberQueue(self._max_queue_size if capacity is None else capacity, overflow)
        return self._subscribed(Subscriber(queue, Selection(), counted=True), None)

    def history(self, run_id: str) -> tuple[Event, ...]:
        """What is kept of a run, oldest first; empty for an unknown one."""
        run_id = plain_text("a run_id", run_id)
        self._settle_down()
        return self._history(run_id, self._waiting())

    def close_stream(self, run_id: str) -> None:
        """End the run: its subscriptions end behind their last event, also those that come later.

        From any thread, after what that thread published before. Publishing to the run opens it again.
        """
        self._entrance.enter_surely(_CloseRun(plain_text("a run_id", run_id)))

    def close(self) -> None:
        """End every subscription behind its last event; what is published from now on is ignored."""
        self._entrance.enter_surely(_CloseBus())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve this trio run until cancelled: what other threads publish is taken in here.

        The state lives in the bus: when this task crashes and is started again, nothing is lost.
        """
        self._entrance.claim()
        task_status.started()
        await trio.sleep_forever()

    def stats(self) -> BusStats:
        """Counts of this moment; from any thread, without disturbing the bus."""
        present = self._audience.present
        dropped = sum(subscriber.queue.dropped for subscriber in self._audience)
        rows = [self._subscriber_stats(subscriber) for subscriber in present]
        self._settle_down()
        depths = _depths_by_run(present)
        return BusStats(
            active_runs=len(depths),
            history_runs=self._histories.count(self._waiting()),
            global_subscribers=sum(subscriber.counted for subscriber in present),
            published_total=self.head,
            dropped_events_total=dropped + self._audience.lost_by_leavers + self._entrance.lost_total,
            lost_from_threads=self._entrance.lost_total,
            queue_depths=depths,
            subscribers=rows,
            head=self.head,
            first=self._ring.first,
            epoch=self.epoch,
        )

    # -- what a subscription needs (`omniactors.events.subscription.Source`) ----------------------

    def claim(self) -> None:
        """Make the current trio run the one that reads; RuntimeError when one in another thread does."""
        self._entrance.claim()

    def advance(self, subscriber: Subscriber) -> None:
        """Replay one page more, or go live when there is none."""
        self._entrance.exclusively(lambda: self._advance(subscriber))

    def _advance(self, subscriber: Subscriber) -> None:
        cursor = subscriber.cursor
        if cursor is None:
            return
        until = self._head if subscriber.until is None else subscriber.until
        loss = None
        if cursor + 1 < self._ring.first and cursor < until:
            last = min(self._ring.first - 1, until)
            loss = Loss(last - cursor, cursor + 1, last, "evicted")
            subscriber.cursor = cursor = last
        kept = self._ring.page(cursor, REPLAY_PAGE, max_bytes=REPLAY_BYTES)
        page = [self._written(event) for event in kept if event.offset <= until]
        subscriber.queue.replay([event for event in page if subscriber.selection.matches(event)], loss=loss)
        cursor = page[-1].offset if page else until
        subscriber.cursor = cursor
        if cursor >= until:
            subscriber.cursor = None
            if subscriber.until is None:
                self._audience.go_live(subscriber)

    def gap_event(self, subscriber: Subscriber, loss: Loss) -> Event:
        """The event that tells a loss; it stands at the offset of the last event that is missing."""
        return Event(
            run_id=subscriber.selection.run_id or "",
            event_type=GAP,
            data={"lost": loss.lost, "first": loss.first, "last": loss.last, "why": loss.why},
            offset=loss.last,
            event_id=position(self.epoch, loss.last),
            timestamp=time.time(),
            source=self.source,
        )

    def leave(self, subscription: Subscription) -> None:
        """Forget the subscriber with the next event."""
        self._audience.leave(subscription)

    # -- inside the entrance: one at a time, nothing here may raise --------------------------------

    def _admit(self, item: _Item) -> None:
        if self._quiet:
            self._catch_up()
        if self._audience.leavers:
            self._audience.forget_leavers()
        match item:
            case Draft():
                self._take_draft(item)
            case Event():
                self._stamp(item, item.run_id or current_run(), item.timestamp or time.time())
            case _Packed():
                self._stamp(item.event, item.run_id, item.timestamp)
            case _CloseRun():
                self._close_run(item.run_id)
            case _CloseBus():
                self._closed = True
                self._close()

    def _stamp(self, event: Event, run_id: str, timestamp: float) -> None:
        if self._closed:
            return
        offset = self._head + 1
        stamped = Event(
            run_id=run_id,
            event_type=event.event_type,
            data=event.data,
            offset=offset,
            event_id=event.event_id or f"{self.epoch}-{offset}",
            timestamp=timestamp,
            source=event.source or self.source,
        )
        self._newest = stamped
        self._head = offset
        size = approximate_size(stamped)
        self._ring.append(stamped, size)
        self._histories.append(stamped, size)
        if size > HEAVY:
            self._audience.offer_heavy(stamped, size)
        else:
            self._audience.offer(stamped)

    def _repair(self) -> None:
        """Complete what an exception has interrupted: the newest event gets wherever it did not get."""
        newest, size = self._newest, 0
        if newest is not None:
            size = approximate_size(newest)
            self._head = newest.offset
            if self._quiet and self._quiet[0] is newest:
                self._quiet.popleft()
            self._ring.repair(newest, size)
            if newest.event_type != GAP:
                self._histories.repair(newest, size)
        self._audience.repair(self._written(newest) if newest is not None else None, size)
        if isinstance(newest, Draft) and newest.ends_run:
            self._close_run(newest.run_id)
        if self._closed:
            self._close()

    def _settle_down(self) -> None:
        """Admit what waits, where that needs no waiting.

        A look from another thread, or out of a signal handler in the middle of an event, does without.
        """
        self._entrance.if_free(self._catch_up)

    def _catch_up(self) -> None:
        """Admit the drafts that nobody has waited for so far; interrupted anywhere, it goes on where it was."""
        quiet, ring, histories = self._quiet, self._ring, self._histories
        if self._audience or self._closed:
            while quiet:
                self._take_draft(quiet[0])
                quiet.popleft()
        while quiet:
            draft = quiet[0]
            draft.offset = offset = self._head + 1
            self._newest = draft
            self._head = offset
            size = EVENT_BYTES + draft.weight
            ring.append(draft, size)
            histories.append(draft, size)
            if draft.ends_run:
                histories.close(draft.run_id)
            quiet.popleft()

    def _waiting(self) -> list[Draft]:
        """What waits, as it would be if it were admitted now; nothing is changed, so any thread may ask."""
        while True:
            head, quiet = self._head, tuple(self._quiet)
            if head == self._head:
                first = quiet[0].offset or head + 1 if quiet else 0  # the first one may be on its way in
                return [msgspec.structs.replace(draft, offset=offset) for offset, draft in enumerate(quiet, first)]

    def _take_draft(self, draft: Draft) -> None:
        if self._closed:
            return
        draft.offset = self._head + 1
        is_wanted = self._audience.wants(draft.event_type, draft.run_id)
        kept = self._written(draft) if is_wanted else draft
        self._newest = draft
        self._head = draft.offset
        size = EVENT_BYTES + draft.weight
        self._ring.append(kept, size)
        self._histories.append(kept, size)
        if isinstance(kept, Event):
            self._audience.offer_heavy(kept, size) if size > HEAVY else self._audience.offer(kept)
        if draft.ends_run:
            self._close_run(draft.run_id)

    def _history(self, run_id: str, waiting: Sequence[Draft]) -> tuple[Event, ...]:
        return tuple(map(self._written, self._histories.of(run_id, waiting)))

    def _written(self, kept: Draft | Event) -> Event:
        return kept.write_out(self.epoch, self.source) if isinstance(kept, Draft) else kept

    def _close_run(self, run_id: str) -> None:
        self._histories.close(run_id)
        for subscriber in self._audience:
            if subscriber.selection.run_id == run_id:
                self._end(subscriber, "run-closed")

    def _close(self) -> None:
        for subscriber in self._audience:
            self._end(subscriber, "bus-closed")

    def _admit_loss(self, lost: int) -> None:
        """Tell everybody that events were lost before they had an offset: an event like any other, but for all."""
        self._catch_up()
        if self._closed:
            return
        offset = self._head + 1
        self._newest = event = Event(
            event_type=GAP,
            data={"lost": lost, "first": None, "last": None, "why": "threads"},
            offset=offset,
            event_id=position(self.epoch, offset),
            timestamp=time.time(),
            source=self.source,
        )
        self._head = offset
        size = approximate_size(event)
        self._ring.append(event, size)
        self._audience.offer_heavy(event, size)

    # -- subscribers -------------------------------------------------------------------------------

    def _subscribed(self, subscriber: Subscriber, since: tuple[str, int] | None) -> Subscription:
        # Made first: who is interrupted before it is handed out drops it, and so it leaves by itself.
        subscription = Subscription(self, subscriber)
        self._entrance.exclusively(lambda: self._add(subscription, subscriber, since))
        return subscription

    def _add(self, subscription: Subscription, subscriber: Subscriber, since: tuple[str, int] | None) -> None:
        self._catch_up()
        self._audience.forget_leavers()
        if subscriber.counted and self._audience.counted >= self._max_global:
            raise TooManySubscribers(self._max_global)
        run_id = subscriber.selection.run_id
        start, resumed = self._head, True
        history: tuple[Event, ...] = ()
        if since is not None:
            start, resumed = self._start_replay(subscriber, since)
        elif run_id is not None:
            self._histories.use(run_id)
            history = self._history(run_id, ())
            start = history[0].offset - 1 if history else start
        subscription.begin(start, resumed=resumed)
        subscriber.queue.replay([event for event in history if subscriber.selection.matches(event)])
        self._audience.add(subscription, subscriber)
        if subscriber.cursor is None:
            self._audience.go_live(subscriber)
        if run_id is not None and self._histories.is_closed(run_id):
            self._end(subscriber, "run-closed")
        if self._closed:
            self._end(subscriber, "bus-closed")

    def _start_replay(self, subscriber: Subscriber, since: tuple[str, int]) -> tuple[int, bool]:
        """Set the subscriber to where it resumes; the offset, and whether nothing is missing behind it."""
        epoch, offset = since
        if epoch != self.epoch:
            last = self._ring.first - 1
            subscriber.cursor = last
            subscriber.queue.replay((), loss=Loss(None, None, last, "epoch"))
            return last, False
        subscriber.cursor = min(offset, self._head)
        return subscriber.cursor, offset + 1 >= self._ring.first

    def _end(self, subscriber: Subscriber, reason: EndReason) -> None:
        if subscriber.cursor is not None and subscriber.until is None:
            subscriber.until = self._head
        subscriber.queue.end(reason)

    def _subscriber_stats(self, subscriber: Subscriber) -> SubscriberStats:
        queue, selection = subscriber.queue, subscriber.selection
        oldest = queue.oldest_offset if subscriber.cursor is None else subscriber.cursor + 1
        return SubscriberStats(
            run_id=selection.run_id,
            types=None if selection.types is None else list(selection.types.texts),
            delivered=queue.delivered,
            dropped=queue.dropped,
            queued=queue.queued,
            capacity=queue.capacity,
            overflow=queue.overflow,
            lag=0 if oldest is None else max(0, self._head - oldest + 1),
        )


# Not a WeakSet: its callbacks are Python code, and Python swallows what a signal handler raises inside of those.
_alive: set[weakref.ref[EventBus]] = set()

_inherited: list[dict[str, object]] = []
"""What parents' buses held: kept, since whatever ends in a child would tell the parent's event loop."""


def _begin_anew() -> None:
    """In a child that was forked: a bus has watchers, a past and a name of its own, and nobody is inside."""
    for bus in [bus for ref in list(_alive) if (bus := ref()) is not None]:
        _inherited.append(dict(vars(bus)))
        *limits, source = bus.made_with
        EventBus.__init__(bus, *limits, source=source)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _plain_event(event: object) -> Event:
    """The event without what a subclass adds to it; raises TypeError for what is no event."""
    if not isinstance(event, Event):
        raise TypeError(f"a bus publishes an Event, such as Event(event_type='x'), not {type(event).__name__}")
    return Event(
        run_id=event.run_id,
        event_type=event.event_type,
        data=event.data,
        event_id=event.event_id,
        timestamp=event.timestamp,
        source=event.source,
    )


def _depths_by_run(subscribers: Iterable[Subscriber]) -> dict[str, list[int]]:
    """How many events wait in each subscription to a run, by run; those that have read to the end do not count."""
    depths: dict[str, list[int]] = {}
    for subscriber in subscribers:
        run_id, queue = subscriber.selection.run_id, subscriber.queue
        if run_id is not None and (queue.end_reason is None or queue.queued or subscriber.cursor is not None):
            depths.setdefault(run_id, []).append(queue.queued)
    return depths


def _weigh(item: _Item) -> int:
    match item:
        case _Packed():
            return approximate_size(item.event)
        case Event() | Draft():
            return approximate_size(item)
    return 0


def _pack(item: _Item) -> _Item:
    if isinstance(item, Event):
        return _Packed(item, item.run_id or current_run(), item.timestamp or time.time())
    return item
