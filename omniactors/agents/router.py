"""The router: the actor that moves entries from the backend into the agents' lanes, as fast as they have room."""

from __future__ import annotations

import logging
import random
from contextlib import asynccontextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import trio

from omniactors.actors.actor import Actor
from omniactors.agents.agenda import Agenda
from omniactors.agents.attempt import error_info, is_from_terminal
from omniactors.agents.lane import Suspect
from omniactors.agents.settler import Job, severity
from omniactors.agents.subscription import readable
from omniactors.backoff import Backoff
from omniactors.errors import BackendError, EntryError
from omniactors.events.event import Event
from omniactors.redaction import redact
from omniactors.streams.crashes import MAX_CRASHES, SUSPECT_CRASHES
from omniactors.streams.settlement import Dead, DeadReason, ErrorInfo, Retry, Settlement, dead_letter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from omniactors.agents.demand import Demand
    from omniactors.agents.lane import Delivery
    from omniactors.agents.subscription import Services, Subscription
    from omniactors.streams.backend import Entry, Fetched, Want
    from omniactors.streams.settlement import EntryKey

logger = logging.getLogger("omniactors.agents")

RECHECK = 5.0
"""Seconds after which the store is asked again what is due. What is due is the store's to say, by its own clock: that
may be put forward, and ours stands still while the machine sleeps."""

MAX_PASSES = 60
"""Times that an event is left to processes that may be able to read it, over some two minutes."""

PASS = Backoff(initial=0.1, maximum=2.0)
"""Between two of these."""

ALONE_PATIENCE = 30.0
"""Seconds for which nothing is fetched for the sake of a suspect that cannot begin, or does not end."""

OTHERS_TURN = 60.0
"""Seconds for which others are fetched then, before the next try."""

RETRY = Backoff(initial=0.05, maximum=5.0)
"""Between two calls while the store fails."""


class Router(Actor[Any]):
    """Fetches exactly what the lanes have room for, decodes it, and hands it out.

    What cannot be read, and what was delivered again and again without any outcome, goes to the
    dead letters. A restart of the router loses nothing: the credit is counted by the lanes.
    """

    def __init__(self, demand: Demand, services: Services) -> None:
        self._demand = demand
        self._services = services
        self._agenda = Agenda()
        self._failures = 0
        self._misfits: list[tuple[Subscription, Entry, EntryError]] = []
        self._watch_failures = 0
        self._stepped = trio.Event()
        self._suspect_came = trio.Event()
        self._watched: Mapping[str, int] = {}
        self._watch_scope = trio.CancelScope()

    def __lane__(self) -> Demand:
        """The reasons to fetch."""
        return self._demand

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Watch the backend beside the fetching."""
        self._demand.changed_everywhere()
        self._demand.on_idle = self._step
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._keep_apart)
            yield
            nursery.cancel_scope.cancel("the router stops")

    async def __work__(self, item: list[Want]) -> None:
        """One fetch, and the delivery of what it took."""
        try:
            fetched = await self._services.backend.fetch(item)
        except BackendError as error:
            await self._wait_out(error)
            self._demand.changed_everywhere()
        else:
            self._recovered()
            counts = await self._deliver(fetched.entries)
            self._note(item, fetched, counts)
        self._step()

    def _step(self) -> None:
        """A fetch is over, or there was none to make."""
        self._stepped.set()
        self._stepped = trio.Event()

    # -- delivering -------------------------------------------------------------------------------

    async def _deliver(self, entries: list[Entry]) -> dict[tuple[str, str], int]:
        """Hand everything out; how many there were of each group."""
        counts: dict[tuple[str, str], int] = {}
        ordered: list[tuple[Subscription, Entry, Delivery | EntryError]] = []
        for (topic, agent), group in groupby(entries, _group_of):
            together = list(group)
            counts[topic, agent] = counts.get((topic, agent), 0) + len(together)
            subscription = self._demand.subscription(topic, agent)
            if subscription is None:
                self._services.settler.give_back(None, [entry.key for entry in together])
            elif subscription.is_ordered:
                ordered += [(subscription, entry, self._read(subscription, entry)) for entry in together]
            else:
                for entry in together:
                    self._hand_out(subscription, entry, self._read(subscription, entry))
        if ordered:
            is_ours = await self._claim([_claim_of(entry, read) for _, entry, read in ordered])
            for (subscription, entry, read), is_owner in zip(ordered, is_ours, strict=True):
                if is_owner:
                    self._hand_out(subscription, entry, read)
        for subscription, spared in self._demand.spare_suspects():
            self._services.settler.give_back(subscription.lane, [delivery.key for delivery in spared])
        self._demand.advance()
        misfits, self._misfits = self._misfits, []
        if misfits:
            await self._pass_on(misfits)
        return counts

    def _read(self, subscription: Subscription, entry: Entry) -> Delivery | EntryError:
        """The entry as its agent reads it: where that is code of users, it may end the process as a handler may."""
        if entry.crashes >= MAX_CRASHES:
            return EntryError("not read: it may end the process")
        if not subscription.runs_code:
            return subscription.read(entry)
        in_hand = self._services.backend.in_hand
        row = in_hand.begin(entry.key)
        try:
            read = subscription.read(entry)
        except BaseException as error:
            if not is_from_terminal(error):
                in_hand.blame(row)
            raise
        in_hand.end(row)
        return read

    async def _claim(self, keys: list[tuple[EntryKey, str]]) -> list[bool]:
        """Which of them may be handled here; asked until the store answers, since nobody passes them meanwhile."""
        try:
            while True:
                try:
                    return await self._services.backend.claim(keys)
                except BackendError as error:
                    await self._wait_out(error)
        except BaseException:
            self._services.settler.give_back(None, [key for key, _ in keys])
            raise

    def _hand_out(self, subscription: Subscription, entry: Entry, read: Delivery | EntryError) -> None:
        crashes = entry.crashes
        if subscription.lane.is_closed:  # since it was fetched: the claim takes a moment
            self._services.settler.give_back(None, [entry.key])
        elif crashes >= MAX_CRASHES:
            self._bury(subscription, entry, "crash-loop", _crash_loop(entry))
        elif isinstance(read, EntryError):
            self._misfits.append((subscription, entry, read))
        elif crashes >= SUSPECT_CRASHES:
            self._isolate(subscription, Suspect(crashes, read))
        elif self._demand.is_shut:
            subscription.lane.held += 1
            self._services.settler.give_back(subscription.lane, [read.key])
        else:
            subscription.lane.put(read)

    async def _pass_on(self, misfits: list[tuple[Subscription, Entry, EntryError]]) -> None:
        """Leave what cannot be read here to processes that read it as something else, while there are any.

        So an older version of an agent leaves what is meant for the next one alone. After MAX_PASSES it
        is dead, and at once when nobody else could read it.
        """
        others = await self._other_readers()
        for subscription, entry, error in misfits:
            key, passes = entry.key, entry.deliveries - entry.attempts
            is_other = others is None or others.get((key.topic, key.agent), set()) - {subscription.fingerprint}
            if passes > MAX_PASSES or not is_other or readable(entry) is None:
                self._bury(subscription, entry, "decode", error_info(error))
                continue
            if passes == 1:
                logger.warning(
                    "agent %s cannot read an event of %s, and leaves it to others: %s", *_names(key), redact(str(error))
                )
            retry = Retry(after=PASS.delay(passes, random.random()), attempts=entry.attempts)  # noqa: S311 -- jitter
            subscription.lane.held += 1
            self._services.settler.submit(Job(subscription.lane, Settlement(key=key, retry=retry), None))

    async def _other_readers(self) -> dict[tuple[str, str], set[str]] | None:
        """By group, as what its content is read by any live process; None when the store does not tell."""
        try:
            runtimes = await self._services.backend.runtimes()
        except BackendError:
            return None
        readers: dict[tuple[str, str], set[str]] = {}
        for runtime in runtimes:
            groups = runtime.groups or ()
            for group, reads in zip(groups, [*runtime.reads, *[""] * len(groups)], strict=False):
                readers.setdefault(group, set()).add(reads)
        return readers

    def _isolate(self, subscription: Subscription, suspect: Suspect) -> None:
        """Have a suspect handled when nothing else is at work in this process."""
        subscription.lane.put_suspect(suspect)
        self._clear(self._demand.isolate(subscription))
        self._suspect_came.set()

    def _clear(self, subscriptions: list[Subscription]) -> None:
        """Give back what nobody has begun; but not of ordered groups, where a suspect may not overtake it."""
        for subscription in subscriptions:
            if not subscription.is_ordered:
                lane = subscription.lane
                self._services.settler.give_back(lane, [delivery.key for delivery in lane.clear_others()])

    async def _keep_apart(self) -> None:
        """Give others a turn when a suspect cannot begin, or does not end: each may wait for what is not fetched."""
        while True:
            await self._suspect_came.wait()
            self._suspect_came = trio.Event()
            while self._demand.is_shut:
                await trio.sleep(ALONE_PATIENCE)
                if self._demand.is_shut:
                    self._demand.relent()
                    await trio.sleep(OTHERS_TURN)
                    self._clear(self._demand.shut())
                    self._demand.advance()

    def _bury(self, subscription: Subscription, entry: Entry, reason: DeadReason, error: ErrorInfo) -> None:
        event = readable(entry)
        dead = Dead(reason=reason, error=error, attempts=entry.attempts)
        subscription.lane.held += 1
        settlement = dead_letter(entry.key, dead, event, now=self._services.clock.now())
        self._services.settler.submit(Job(subscription.lane, settlement, event))

    # -- what a fetch told ------------------------------------------------------------------------

    def _note(self, wants: list[Want], fetched: Fetched, counts: dict[tuple[str, str], int]) -> None:
        """Remember what is drained, what is paused, and when something is due."""
        is_news = False
        for want in wants:
            is_paused = want.agent in fetched.paused
            self._pause_or_resume(want, is_paused=is_paused)
            is_short = counts.get((want.topic, want.agent), 0) < want.credit and not fetched.has_more
            if (is_short or is_paused) and self._demand.drained(want, fetched.position):
                is_news = is_news or want.topic not in self._watched
        self._demand.fetched(wants)
        due = None if fetched.next_due is None else trio.current_time() + min(fetched.next_due, RECHECK)
        self._agenda.note([(want.topic, want.agent) for want in wants], due)
        # The watch may have begun before this fetch.
        self._watch_scope.deadline = self._agenda.next_due()
        if is_news:
            self._watch_scope.cancel("there are other topics to watch")

    def _pause_or_resume(self, want: Want, *, is_paused: bool) -> None:
        """Tell the lane and the bus when an agent was paused or resumed; what no handler has begun goes back."""
        agent, subscription = want.agent, self._demand.subscription(want.topic, want.agent)
        if subscription is None or subscription.lane.is_suspended == is_paused:
            return
        lane = subscription.lane
        lane.is_suspended = is_paused
        if is_paused:
            self._services.settler.give_back(lane, [delivery.key for delivery in lane.clear()])
            self._services.bus.publish(Event(event_type="router.paused", data={"agent": agent, "why": "paused"}))
        else:
            self._services.bus.publish(Event(event_type="router.resumed", data={"agent": agent}))

    # -- watching ---------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Wait for changes in the topics that are drained, and for what is due, and say so."""
        while True:
            if self._demand.has_work:
                # What changed is fetched now, and drained by that, mostly: then it is watched with the rest.
                await self._stepped.wait()
            self._watched = dict(self._demand.watched)
            changed: frozenset[str] = frozenset()
            with trio.CancelScope(deadline=self._agenda.next_due()) as self._watch_scope:
                changed = await self._wait_for_change(self._watched)
            self._watched = {}
            self._demand.changed(changed)
            due = self._agenda.take_due(trio.current_time())
            if due:
                self._demand.due(due)

    async def _wait_for_change(self, positions: Mapping[str, int]) -> frozenset[str]:
        if not positions:
            await trio.sleep_forever()
        try:
            changed = await self._services.backend.wait(positions)
        except BackendError as error:
            if self._watch_failures == 0:
                logger.log(severity(error), "the store cannot be watched: %s", error)
            self._watch_failures += 1
            await trio.sleep(_pause(self._watch_failures))
            return frozenset(positions)
        self._watch_failures = 0
        return changed

    async def _wait_out(self, error: BackendError) -> None:
        self._failures += 1
        level = severity(error)
        if self._failures == 1 or level == logging.ERROR:
            logger.log(level, "the store fails, fetching waits: %s", error)
        if self._failures == 1:
            self._services.bus.publish(Event(event_type="backend.disconnected", data={"error": str(error)}))
        await trio.sleep(_pause(self._failures))

    def _recovered(self) -> None:
        if self._failures:
            self._failures = 0
            logger.warning("the store answers again, events are fetched")
            self._services.bus.publish(Event(event_type="backend.recovered"))


def _pause(failures: int) -> float:
    return RETRY.delay(failures, random.random())  # noqa: S311 -- jitter, not a secret


def _names(key: EntryKey) -> tuple[str, str]:
    return key.agent, key.topic


def _group_of(entry: Entry) -> tuple[str, str]:
    return entry.key.topic, entry.key.agent


def _claim_of(entry: Entry, read: Delivery | EntryError) -> tuple[EntryKey, str]:
    """The entry with its ordering key; one without a key, or that cannot be read, has its own id for one."""
    ordering = None if isinstance(read, EntryError) else read.ordering
    # No JSON text begins with #.
    return entry.key, f"#{entry.key.entry_id}" if ordering is None else ordering


def _crash_loop(entry: Entry) -> ErrorInfo:
    return ErrorInfo(
        type="CrashLoop",
        message=f"its process ended {entry.crashes} times while it was handled, at last with nothing else at work",
    )
