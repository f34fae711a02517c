"""The audience of a bus: who subscribes, and to whom an event of some type and run goes.

Used inside the bus' entrance, one call at a time; only `leave` may be called from any thread.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING

from omniactors.events.history import MAX_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omniactors.events.event import Event
    from omniactors.events.patterns import Objects
    from omniactors.events.subscription import Subscriber, Subscription

MAX_ROUTES = 4096
"""Event types whose subscribers are remembered; types are few, but nothing bounds what is published."""


class Audience:
    """All subscribers. One that replays the past hears nothing live until `go_live`."""

    def __init__(self) -> None:
        self.lost_by_leavers = 0
        """Events that subscribers who are gone had missed."""
        self._subscribers: dict[weakref.ref[Subscription], Subscriber] = {}
        self._routes: dict[str, tuple[Subscriber, ...]] = {}
        self._by_run: dict[str, list[Subscriber]] = {}
        # The collector may find a subscription dropped in any thread: it only leaves a note here. No `__del__`,
        # since Python swallows what a signal handler raises inside of one.
        self.leavers: deque[weakref.ref[Subscription]] = deque()
        """Those who have left and are not forgotten yet."""

    def __len__(self) -> int:
        return len(self._subscribers)

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(tuple(self._subscribers.values()))

    @property
    def present(self) -> list[Subscriber]:
        """Those who have not left; from any thread."""
        gone = set(self.leavers)  # in one step: nothing in it runs Python code
        return [subscriber for ref, subscriber in tuple(self._subscribers.items()) if ref not in gone]

    @property
    def counted(self) -> int:
        """How many there are of those whose number is limited."""
        return sum(subscriber.counted for subscriber in self)

    def add(self, subscription: Subscription, subscriber: Subscriber) -> None:
        """Let somebody in, who is not live yet; it leaves when nothing refers to the subscription any more."""
        self._subscribers[weakref.ref(subscription, self.leavers.append)] = subscriber

    def go_live(self, subscriber: Subscriber) -> None:
        """From now on it gets what it wants."""
        run_id = subscriber.selection.run_id
        if run_id is None:
            self._routes.clear()
        else:
            self._by_run.setdefault(run_id, []).append(subscriber)

    def leave(self, subscription: Subscription) -> None:
        """Have the subscriber forgotten with the next event."""
        ref = weakref.ref(subscription)
        hash(ref)  # it can be looked up by this, also when the subscription is gone
        self.leavers.append(ref)

    def forget_leavers(self) -> None:
        """Forget those who have left."""
        while self.leavers:
            subscriber = self._subscribers.pop(self.leavers[0], None)
            self.leavers.popleft()
            if subscriber is None:
                continue  # closed, and now collected too
            self.lost_by_leavers += subscriber.queue.dropped
            run_id = subscriber.selection.run_id
            if run_id is None:
                self._routes.clear()
            elif subscriber in (of_run := self._by_run.get(run_id, [])):
                of_run.remove(subscriber)
                if not of_run:
                    del self._by_run[run_id]

    def wants(self, event_type: str, run_id: str) -> bool:
        """Whether anybody live may want such an event."""
        return bool(self._route_of(event_type)) or run_id in self._by_run

    def offer(self, event: Event) -> None:
        """Give the event to those who want it."""
        route = self._routes.get(event.event_type)
        objects: Objects = {}
        for subscriber in self._route_of(event.event_type) if route is None else route:
            where = subscriber.selection.where
            if where is None or where.matches(event, objects):
                subscriber.queue.offer(event)
        for subscriber in self._by_run.get(event.run_id, ()):
            if subscriber.selection.matches(event, objects):
                subscriber.queue.offer(event)

    def offer_heavy(self, event: Event, size: int) -> None:
        """As `offer`, for a large event, and for a gap, which everybody wants."""
        objects: Objects = {}
        for subscriber in self:
            if subscriber.cursor is None and subscriber.selection.matches(event, objects):
                subscriber.queue.offer_heavy(event, size)

    def repair(self, event: Event | None, size: int) -> None:
        """Complete what an exception may have interrupted, of which `event` was the last; wake who was not woken."""
        self._routes.clear()
        self._by_run.clear()
        for subscriber in self:
            is_live = subscriber.cursor is None
            run_id = subscriber.selection.run_id
            if is_live and run_id is not None:
                self._by_run.setdefault(run_id, []).append(subscriber)
            is_meant = event is not None and is_live and subscriber.selection.matches(event)
            subscriber.queue.repair(event if is_meant else None, size)

    def _route_of(self, event_type: str) -> tuple[Subscriber, ...]:
        """The live subscribers that want this type and are not of one run, remembered."""
        route = self._routes.get(event_type)
        if route is None:
            route = tuple(
                subscriber
                for subscriber in self
                if subscriber.cursor is None
                and subscriber.selection.run_id is None
                and subscriber.selection.wants_type(event_type)
            )
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            if len(event_type) <= MAX_ID:
                self._routes[event_type] = route
        return route
