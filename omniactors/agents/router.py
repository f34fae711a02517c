"""The router: the actor that moves entries from the backend into the agents' lanes, as fast as they have room."""

from __future__ import annotations

import logging
import math
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from omniactors.actors.actor import Actor
from omniactors.agents.attempt import error_info
from omniactors.agents.settler import Job
from omniactors.agents.subscription import Subscription, readable
from omniactors.backoff import Backoff
from omniactors.errors import BackendError, BackendUnusable, EntryError
from omniactors.events.event import Event
from omniactors.streams.backend import Entry, Want
from omniactors.streams.settlement import Dead, DeadReason, ErrorInfo, dead_letter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from omniactors.actors.mailbox import Parker
    from omniactors.agents.subscription import Services

logger = logging.getLogger("omniactors.agents")

Group = tuple[str, str]

SUSPECT_CRASHES = 3
"""Deliveries without any outcome after which an entry is handled alone: it may be what kills its process."""

MAX_CRASHES = 5
"""Deliveries without any outcome after which it is dead-lettered: at the last ones nothing else was at work."""

RETRY = Backoff(initial=0.05, maximum=5.0)
"""Between two fetches while the store fails."""


class Demand:
    """Which groups to fetch for: those with room in their lane, and perhaps something in their stream.

    It is the router's lane: it gives out work whenever there is a reason to fetch.
    """

    def __init__(self) -> None:
        self.subscriptions: dict[Group, Subscription] = {}
        self.generation = 0
        """Goes up with every change in the streams that somebody noticed."""
        self._backlog: dict[Group, None] = {}
        self._idle: dict[Parker, None] = {}
        self._rotation = 0

    def add(self, subscription: Subscription) -> None:
        """Fetch for this agent too."""
        for group in subscription.groups:
            self.subscriptions[group] = subscription
        self.changed()

    def remove(self, subscription: Subscription) -> None:
        """Fetch for this agent no more."""
        for group in subscription.groups:
            self.subscriptions.pop(group, None)
            self._backlog.pop(group, None)

    def changed(self) -> None:
        """Something may have been added to the streams, or become due."""
        self.generation += 1
        self._backlog = dict.fromkeys(self.subscriptions)
        self.room()

    def room(self) -> None:
        """A lane has room."""
        if self._backlog:
            for parker in self._idle:
                parker.wake()
            self._idle.clear()

    def exhausted(self, groups: Iterable[Group], generation: int) -> None:
        """A fetch that began at `generation` found the streams of these groups empty."""
        if generation == self.generation:
            for group in groups:
                self._backlog.pop(group, None)

    def take(self) -> list[Want] | None:
        """What to fetch now, or None. Groups that share a lane share its credit; the order rotates."""
        groups = list(self._backlog)
        if not groups:
            return None
        self._rotation = (self._rotation + 1) % len(groups)
        left: dict[Subscription, int] = {}
        shares: dict[Subscription, int] = {}
        for group in groups:
            subscription = self.subscriptions[group]
            left.setdefault(subscription, subscription.lane.credit)
            shares[subscription] = shares.get(subscription, 0) + 1
        wants = []
        for group in groups[self._rotation :] + groups[: self._rotation]:
            subscription = self.subscriptions[group]
            credit = math.ceil(left[subscription] / shares[subscription])
            shares[subscription] -= 1
            left[subscription] -= credit
            if credit:
                wants.append(Want(*group, credit))
        return wants or None

    def add_idle(self, parker: Parker) -> None:
        """Wake the router when there is something to fetch."""
        self._idle[parker] = None

    def discard_idle(self, parker: Parker) -> None:
        """Forget the router."""
        self._idle.pop(parker, None)


class Router(Actor[Any]):
    """Fetches exactly what the lanes have room for, decodes it, and hands it out.

    What cannot be read, and what was delivered again and again without any outcome, goes to the
    dead letters. A restart of the router loses nothing: the credit is counted by the lanes.
    """

    def __init__(self, demand: Demand, services: Services) -> None:
        self._demand = demand
        self._services = services
        self._failures = 0
        self._position = 0
        self._due: dict[Group, float] = {}
        """When the next delayed entry of a group is due, in trio's time, as of its last fetch."""
        self._fetched = trio.Event()
        self._watched: frozenset[str] = frozenset()
        self._watch_scope = trio.CancelScope()

    def __lane__(self) -> Demand:
        """The reasons to fetch."""
        return self._demand

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Watch the backend beside the fetching."""
        self._demand.changed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            yield
            nursery.cancel_scope.cancel("the router stops")

    async def __work__(self, item: list[Want]) -> None:
        """One fetch, and the delivery of what it took."""
        generation = self._demand.generation
        try:
            fetched = await self._services.backend.fetch(item)
        except BackendUnusable:
            raise
        except BackendError as error:
            await self._wait_out(error)
            return
        self._recovered()
        counts: dict[Group, int] = {}
        for entry in fetched.entries:
            group = (entry.key.topic, entry.key.agent)
            counts[group] = counts.get(group, 0) + 1
        self._deliver(fetched.entries)
        short = [(want.topic, want.agent) for want in item if counts.get((want.topic, want.agent), 0) < want.credit]
        self._demand.exhausted(short, generation)
        self._note_due(item, fetched.next_due)
        self._position = fetched.position
        self._fetched.set()
        if self._watched != self._topics():
            self._watch_scope.cancel("there are other topics to watch")

    def _deliver(self, entries: list[Entry]) -> None:
        for entry in entries:
            subscription = self._demand.subscriptions.get((entry.key.topic, entry.key.agent))
            if subscription is None:
                self._services.settler.give_back(None, [entry.key])
                continue
            try:
                if entry.crashes >= MAX_CRASHES:
                    self._bury(subscription, entry, "crash-loop", _crash_loop(entry))
                elif entry.crashes >= SUSPECT_CRASHES or subscription.lane.has_suspect:
                    self._isolate(subscription, entry)
                else:
                    subscription.lane.put(subscription.decode(entry))
            except EntryError as error:
                self._bury(subscription, entry, "decode", error_info(error))

    def _isolate(self, subscription: Subscription, entry: Entry) -> None:
        """Have a suspect handled with nothing beside it; what was fetched with it goes back, to be spared."""
        lane = subscription.lane
        if lane.has_suspect:
            lane.held += 1
            self._services.settler.give_back(lane, [entry.key])
        else:
            suspect = subscription.decode(entry)
            self._services.settler.give_back(lane, [delivery.key for delivery in lane.clear()])
            lane.put_suspect(suspect)

    def _bury(self, subscription: Subscription, entry: Entry, reason: DeadReason, error: ErrorInfo) -> None:
        event = readable(entry)
        dead = Dead(reason=reason, error=error, attempts=entry.attempts)
        subscription.lane.held += 1
        settlement = dead_letter(entry.key, dead, event, now=self._services.clock.now())
        self._services.settler.submit(Job(subscription.lane, settlement, event))

    async def _watch(self) -> None:
        """After each fetch, wait until the streams may have changed since, and say so."""
        while True:
            await self._fetched.wait()
            self._fetched = trio.Event()
            self._watched = self._topics()
            with trio.CancelScope(deadline=min(self._due.values(), default=math.inf)) as self._watch_scope:
                await self._wait_for_change(sorted(self._watched))
            # What is due now is fetched as soon as there is room for it; watching for it any longer would spin.
            now = trio.current_time()
            self._due = {group: due for group, due in self._due.items() if due > now}
            self._demand.changed()

    def _topics(self) -> frozenset[str]:
        return frozenset(topic for topic, _ in self._demand.subscriptions)

    def _note_due(self, wants: list[Want], next_due: float | None) -> None:
        for want in wants:
            group = (want.topic, want.agent)
            if next_due is None:
                self._due.pop(group, None)
            else:
                self._due[group] = trio.current_time() + next_due
        # The watch may have begun before this fetch.
        self._watch_scope.deadline = min(self._due.values(), default=math.inf)

    async def _wait_for_change(self, topics: list[str]) -> None:
        try:
            await self._services.backend.wait(topics, self._position)
        except BackendUnusable:
            raise
        except BackendError as error:
            logger.warning("the store cannot be watched: %s", error)
            await trio.sleep(RETRY.initial)

    async def _wait_out(self, error: BackendError) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.warning("the store fails, fetching waits: %s", error)
            self._services.bus.publish(Event(event_type="backend.disconnected", data={"error": str(error)}))
        await trio.sleep(RETRY.delay(self._failures, random.random()))  # noqa: S311 -- jitter, not a secret
        self._demand.changed()

    def _recovered(self) -> None:
        if self._failures:
            self._failures = 0
            self._services.bus.publish(Event(event_type="backend.recovered"))


def _crash_loop(entry: Entry) -> ErrorInfo:
    return ErrorInfo(
        type="CrashLoop", message=f"delivered {entry.crashes} times to processes that vanished without any outcome"
    )
