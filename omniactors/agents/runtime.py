"""The runtime of agents: the work half of a system's supervision tree.

    work (rest_for_one)
    |- backend      a consumer of the store: leases, takeover, expiry
    |- settler      writes what handlers' ends decided
    |- agents       (dynamic) one pool per agent; one that gives up takes only itself down
    |- staff        starts the agents, and those that are added later
    '- router       moves entries into the agents' lanes

Stopping goes from the router backwards: nothing new is taken, agents finish what they are at,
settlements are written, what is left is released.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import trio

from omniactors.actors import notices
from omniactors.actors.dynamic import DynamicSupervisor
from omniactors.actors.pool import pool
from omniactors.actors.rules import Intensity
from omniactors.actors.specs import ChildSpec
from omniactors.actors.trees import Subtree, subtree
from omniactors.agents.agent import Agent, CallbackAgent
from omniactors.agents.attempt import error_info, is_interrupt, lone_error
from omniactors.agents.demand import Demand
from omniactors.agents.failures import FailureLog, described
from omniactors.agents.options import AgentConfig, AgentKeywords, AgentOptions, is_lone, stable_name
from omniactors.agents.reports import report_notice, report_unreadable, settled_drafts
from omniactors.agents.router import Router
from omniactors.agents.settler import Fate, Job, Settler, severity
from omniactors.agents.subscription import Services, Subscription
from omniactors.agents.webhooks import WebhookAgent
from omniactors.backoff import Backoff
from omniactors.errors import (
    AgentError,
    BackendError,
    ChildAlreadyStarted,
    ChildError,
    ChildNotFound,
    ChildStartError,
    GaveUp,
)
from omniactors.events.event import Event
from omniactors.streams.backend import AgentRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.notices import Notice
    from omniactors.actors.refs import ActorRef
    from omniactors.events.bus import EventBus
    from omniactors.events.event import Draft
    from omniactors.streams.backend import Backend

logger = logging.getLogger("omniactors.agents")

BACKEND_STOP = 10.0
"""Seconds for the store to release what is left."""

AGENT_BACKOFF = Backoff(initial=0.1, maximum=5.0, reset_after=5.0)
AGENT_RESTARTS = 10
"""Restarts an instance may need in ten seconds; its events are settled whatever it does, so it is a soft limit."""

CURE = Backoff(initial=1.0, maximum=60.0, jitter=0.0, reset_after=60.0)
"""Between two tries of an agent that gave up; one that ran for a minute after it was cured begins with the shortest."""

LOOK = 1.0
"""Seconds between two looks whether somebody wants an agent that gave up to be tried again."""

STORE_PAUSE = Backoff(initial=0.1, maximum=5.0)
"""Between two tries of what the store refused while the runtime was up already."""


class SystemClock:
    """The machine's wall clock and chance."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    def random(self) -> float:
        """From [0, 1)."""
        return random.random()  # noqa: S311 -- jitter, not a secret


Standing = tuple[list[tuple[str, str]], dict[str, str], list[str]]


@dataclass
class Outage:
    """An agent that gave up: why, how often in a row, and when it is tried again (on trio's clock)."""

    reason: str
    count: int
    due: float
    is_being_tried: bool = False


@dataclass(eq=False)
class Member:
    """One agent of the roster: its subscription, what to run, and whether it runs.

    `id` is how the supervisor of agents calls it, `what` the user gave. Those that it `replaces` end
    before it starts.
    """

    id: str
    subscription: Subscription
    what: object
    cls: type[Agent]
    args: tuple[Any, ...]
    replaces: list[Member]
    outage: Outage | None = None
    relapses: int = 0
    up_since: float = 0.0
    started: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None

    def reset(self) -> None:
        """Be as before the first run."""
        self.outage = None
        self.relapses = 0
        self.started = trio.Event()
        self.error = None
        self.replaces.clear()
        self.subscription.lane.reset()

    def is_made_of(self, what: object, args: tuple[Any, ...]) -> bool:
        """Whether this is the same agent for who says no name: the same thing, or what its module defines anew."""
        mine, other = _made_of(self.what), _made_of(what)
        return (isinstance(what, AgentConfig) or self.args == args) and (mine == other or is_lone(other))

    def spec(self, grace: float) -> ChildSpec:
        """The pool of its instances; transient, so that an agent that gave up stays down."""
        options = self.subscription.options
        described = pool(
            self.cls,
            *self.args,
            size=options.concurrency,
            intensity=Intensity(AGENT_RESTARTS * options.concurrency, 10.0),
            shutdown=grace,
            name=self.subscription.name,
        )
        described = replace(described, backoff=AGENT_BACKOFF, prepare=self._prepare)
        return ChildSpec(described, id=self.id, restart="transient", mailbox=options.mailbox)

    def fail(self, reason: str, now: float) -> Outage:
        """Note that it gave up, or could not be started again."""
        if self.outage is None and now - self.up_since >= CURE.reset_after:
            self.relapses = 0
        self.relapses += 1
        self.outage = Outage(reason, self.relapses, now + CURE.delay(self.relapses, 0.0))
        return self.outage

    def record(self, now: float) -> list[AgentRecord]:
        """What the registry says of it, per topic."""
        options = self.subscription.options
        config: dict[str, Any] = {
            "concurrency": options.concurrency,
            "limit": options.limit,
            "max_attempts": options.retry.max_attempts,
            "timeout": options.timeout,
            "reply_to": options.reply_to,
        }
        return [
            AgentRecord(
                topic=topic,
                name=self.subscription.name,
                callback=_callback_name(self.what),
                tools=options.tools,
                description=options.description,
                config=config,
                created_at=now,
            )
            for topic in options.topics
        ]

    def _prepare(self, agent: Agent) -> None:
        agent.__subscribe__(self.subscription)


class AgentRuntime:
    """The roster of agents and the tree that runs them. Agents may be added before and while it runs."""

    def __init__(self, backend: Backend, bus: EventBus, *, grace: float, result_ttl: float, entry_limit: int) -> None:
        self._backend = backend
        self._bus = bus
        self._grace = grace
        self._demand = Demand()
        self._settler = Settler(
            backend,
            on_settled=self._settled,
            on_stop=self._release_all,
        )
        self._services = Services(
            backend, self._settler, bus, SystemClock(), result_ttl=result_ttl, entry_limit=entry_limit
        )
        self._roster: dict[str, Member] = {}
        """By the id of each, which is the name of the first of a name."""
        self._by_group: dict[tuple[str, str], Member] = {}
        self._agents = DynamicSupervisor(name="agents")
        self._news = trio.Event()
        self._is_up = False
        self._failures = FailureLog()
        self._reported: Standing | None = None
        self.add(WebhookAgent, (), {})

    def add(self, what: object, args: tuple[Any, ...], keywords: AgentKeywords) -> Subscription:
        """Put an agent on the roster; raises AgentError. While the runtime runs it is started soon."""
        cls, args, options, content_type = _described(what, args)
        options = options.override(keywords)
        name = options.name or stable_name(_made_of(what), options.topics)
        replaced = self._replaced(what, args, options, name)
        subscription = Subscription(
            options,
            name=name,
            content_type=content_type,
            services=self._services,
            on_room=self._demand.room,
        )
        id_ = _id_of(name, options.topics, replaced, self._roster)
        for earlier in replaced:
            del self._roster[earlier.id]
            self._close(earlier.subscription)
            earlier.started.set()
        ending = [member for earlier in replaced for member in (earlier, *earlier.replaces)]
        member = self._roster[id_] = Member(id_, subscription, what, cls, args, ending)
        self._by_group |= dict.fromkeys(subscription.groups, member)
        self._news.set()
        return subscription

    def _replaced(self, what: object, args: tuple[Any, ...], options: AgentOptions, name: str) -> list[Member]:
        """The members of this name whose topics it takes over, all of them; raises AgentError when it may not."""
        found = {self._by_group.get((topic, name)): None for topic in options.topics}
        earlier = [member for member in found if member is not None]
        for member in earlier:
            others = set(member.subscription.options.topics) - set(options.topics)
            if others:
                raise AgentError(
                    f"agent {name!r} reads {', '.join(sorted(others))} too: to replace it, add it with all its topics; "
                    "to add another agent, give it another name="
                )
            if options.name is None and not member.is_made_of(what, args):
                raise AgentError(f"there is an agent {name!r} already; give one of them another name=")
        return earlier

    async def wait_started(self, subscription: Subscription) -> None:
        """Wait until an agent of a running runtime is ready; raises what kept it from starting."""
        member = None
        while member is not (newest := self._by_group[subscription.groups[0]]):
            member = newest
            await member.started.wait()
        if member.error is not None:
            raise member.error

    async def enroll(self, subscription: Subscription) -> None:
        """Make the agent's groups and registry entry, without running it."""
        await self._enroll([self._by_group[subscription.groups[0]]])

    def tree(self) -> Subtree:
        """The work half of the system, for one run."""
        self._is_up = False
        self._demand.close()
        self._backend.in_hand.clear()
        self._settler.reset()
        for member in self._roster.values():
            member.reset()
        return subtree(
            ChildSpec(self._serve_backend, id="backend", restart="permanent", shutdown=BACKEND_STOP),
            ChildSpec(self._settler.run, id="settler", restart="permanent", shutdown=self._grace),
            ChildSpec(self._agents, id="agents"),
            ChildSpec(self._staff, id="staff", restart="permanent"),
            ChildSpec(Router, self._demand, self._services, id="router"),
            strategy="rest_for_one",
            backoff=Backoff(initial=0.05, maximum=5.0),
            name="work",
        )

    def note_stop(self) -> None:
        """The process is being stopped: if somebody's patience ends before that, no event is to blame."""
        self._backend.in_hand.stop()

    def take_events(self) -> None:
        """Begin to take events: until this is called a tree that has started takes none."""
        self._demand.open()

    def ref(self, name: str) -> ActorRef[Any]:
        """The reference of a running agent; raises ChildNotFound."""
        return cast("ActorRef[Any]", self._agents.child(name))

    @property
    def names(self) -> list[str]:
        """The names of the agents that users added."""
        users = (member.subscription.name for member in self._roster.values() if member.cls is not WebhookAgent)
        return list(dict.fromkeys(users))

    def running_tasks(self) -> dict[str, int]:
        """How many events each agent handles at this moment."""
        handling: Counter[str] = Counter()
        for member in self._roster.values():
            handling[member.subscription.name] += member.subscription.lane.handling
        return dict(handling)

    def notice(self, notice: Notice) -> None:
        """Take note of what happened in the tree, and tell the bus."""
        at = {f"{self._agents.path}/{id}": member.subscription.name for id, member in self._roster.items()}
        report_notice(self._bus, notice, at)
        if isinstance(notice, notices.SupervisorGaveUp):
            name = at.get(notice.path)
            if name is not None:
                member = self._roster[notice.path.removeprefix(f"{self._agents.path}/")]
                if not member.replaces:  # else it is the one that it replaces which gave up: that is to end anyway
                    self._gave_up(member, _why(notice.reason.error, str(notice.reason)))
        elif isinstance(notice, notices.ChildExited) or (isinstance(notice, notices.ChildStartFailed) and self._is_up):
            # A first start that fails is raised to whoever runs the system, so it is not logged as well.
            error = notice.reason.error
            if error is not None and not isinstance(error, ChildStartError | GaveUp) and not is_interrupt(error):
                agent = at.get(notice.path.rpartition("/")[0])
                who = notice.path if agent is None else f"agent {agent}"
                self._failures.note_crash(who, error_info(lone_error(error)), now=trio.current_time())
                self._news.set()

    def held_events(self) -> dict[str, int]:
        """How many events of each agent are in memory here: waiting, being handled, being written."""
        held: Counter[str] = Counter()
        for member in self._roster.values():
            held[member.subscription.name] += member.subscription.lane.held
        return dict(held)

    async def _serve_backend(self, *, task_status: Incarnation) -> None:
        """Be a consumer; what keeps it from that is an error at the very first start, and waited out later."""
        attempt = 0
        while True:
            try:
                await self._backend.serve(task_status=task_status)
            except BackendError as error:
                if task_status.is_started or not self._is_up:
                    raise
                attempt += 1
                logger.log(severity(error), "the store cannot be used, all work waits: %s", error)
                await trio.sleep(STORE_PAUSE.delay(attempt, random.random()))  # noqa: S311 -- jitter, not a secret

    async def _staff(self, *, task_status: Incarnation) -> None:
        """Start every agent of the roster, then those that are added, and again those that gave up.

        A restart of the tree starts all again.
        """
        started: set[Member] = set()
        self._reported = None
        await self._start(self._fresh(started))
        await self._report()
        self._is_up = True
        task_status.started()
        async with trio.open_nursery() as cures:
            while True:
                self._news = trio.Event()
                for member in self._fresh(started):  # one by one: what one waits for holds up no other one
                    cures.start_soon(self._start, [member])
                self._replace(started, cures)
                await self._look_after(cures)
                self._failures.flush(trio.current_time())
                with trio.move_on_at(min(self._next_look(), self._failures.next_due())):
                    await self._news.wait()

    def _fresh(self, started: set[Member]) -> list[Member]:
        """Those that are to be started: they were not since the tree was. They are counted as started."""
        fresh = [
            member
            for member in self._roster.values()
            if member not in started and member.outage is None and not member.replaces
        ]
        started.update(fresh)
        return fresh

    def _replace(self, started: set[Member], replacements: trio.Nursery) -> None:
        """Have those take over that replace others; what one waits for holds up no other one."""
        for member in self._roster.values():
            if member.replaces and member not in started:
                started.add(member)
                replacements.start_soon(self._take_over, member)

    async def _take_over(self, member: Member) -> None:
        """Start an agent when those that it replaces have finished what they have begun, or had their grace time."""
        while member.replaces and self._is_on_roster(member):  # who replaces this one ends them too
            earlier = member.replaces[-1]
            with suppress(ChildNotFound):
                await self._agents.stop_child(earlier.id)
                await self._agents.delete_child(earlier.id)
            member.replaces.remove(earlier)
        await self._start([member])

    def _is_on_roster(self, member: Member) -> bool:
        return self._roster.get(member.id) is member

    async def _start(self, members: list[Member]) -> None:
        """Start agents, and fetch for them; but none that was replaced meanwhile.

        Raises the first failure of the very first start.
        """
        fresh = [member for member in members if self._is_on_roster(member) and await self._start_child(member)]
        ready = [member for member in fresh if member.error is None]
        # All groups of a runtime exist before its first fetch; one whose agent cannot start would only hold events up.
        await self._persist(lambda: self._enroll(ready))
        for member in ready:
            if self._is_on_roster(member):
                self._demand.add(member.subscription)
        for member in fresh:
            member.started.set()

    async def _start_child(self, member: Member) -> bool:
        """Start one agent, or note that it cannot be started; False when it was replaced, which ends its start."""
        try:
            await self._agents.start_child(member.spec(self._grace))
        except ChildAlreadyStarted:  # by the life of the staff before this one
            pass
        except ChildStartError as error:
            if not self._is_on_roster(member):
                return False
            member.error = ChildStartError(member.subscription.name)
            member.error.__cause__ = start_failure(error).__cause__
            if not self._is_up:
                raise member.error from member.error.__cause__
            self._gave_up(member, _why(member.error.__cause__, str(member.error)))
        else:
            member.up_since = trio.current_time()
        return True

    async def _enroll(self, members: list[Member]) -> None:
        await self._backend.create_groups([group for member in members for group in member.subscription.groups])
        now = self._services.clock.now()
        known = [record for member in members if member.cls is not WebhookAgent for record in member.record(now)]
        await self._backend.save_agents(known)

    async def _persist(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write, and wait while the store refuses that; at the very first start that is an error."""
        attempt = 0
        while True:
            try:
                await write()
            except BackendError as error:
                if not self._is_up:
                    raise
                attempt += 1
                logger.log(severity(error), "agents wait, the store refuses them: %s", error)
                await trio.sleep(STORE_PAUSE.delay(attempt, random.random()))  # noqa: S311 -- jitter, not a secret
            else:
                return

    # -- agents that gave up -------------------------------------------------------------------------

    def _outages(self) -> list[Outage]:
        return [member.outage for member in self._roster.values() if member.outage is not None]

    def _next_look(self) -> float:
        """When there is something to look after, if nothing happens until then."""
        due = [outage.due for outage in self._outages() if not outage.is_being_tried]
        has_cause = bool(self._outages()) or self._reported != self._standing()
        return min([trio.current_time() + LOOK if has_cause else math.inf, *due])

    def _standing(self) -> Standing:
        """Which groups are served here and as what they are read, and which agents gave up and why."""
        roster = self._roster.values()
        up = [member.subscription for member in roster if member.outage is None]
        down = {member.subscription.name: member.outage.reason for member in roster if member.outage is not None}
        reads = [subscription.fingerprint for subscription in up for _ in subscription.groups]
        return [group for subscription in up for group in subscription.groups], down, reads

    async def _report(self) -> None:
        """Have the store know what is served here, and what is down."""
        standing = self._standing()
        await self._backend.report(*standing)
        self._reported = standing

    async def _look_after(self, cures: trio.Nursery) -> None:
        """Try those again whose pause is over, or that somebody wants to be tried; report what has changed."""
        try:
            wanted = await self._backend.restarts() if self._outages() else frozenset()
            if wanted or self._reported != self._standing():
                await self._report()
        except BackendError as error:
            logger.log(severity(error), "what is down here is not reported yet: %s", error)
            wanted = frozenset()
        now = trio.current_time()
        for member in self._roster.values():
            name, outage = member.subscription.name, member.outage
            if outage is not None and not outage.is_being_tried and (name in wanted or now >= outage.due):
                outage.is_being_tried = True
                cures.start_soon(self._cure, member)

    async def _cure(self, member: Member) -> None:
        """Start an agent that gave up; when it runs it takes events again."""
        name = member.subscription.name
        try:
            await self._agents.start_child(member.spec(self._grace))
        except ChildError:  # its last life has not come to its end yet
            if member.outage is not None:
                member.outage.due, member.outage.is_being_tried = trio.current_time() + LOOK, False
            return
        except ChildStartError as error:
            if self._is_on_roster(member):
                cause = start_failure(error).__cause__
                self._note_outage(member, "does not start", _why(cause, str(error)))
            return
        if not self._is_on_roster(member):
            return
        member.outage = member.error = None
        member.up_since = trio.current_time()
        member.subscription.lane.is_closed = False
        await self._persist(lambda: self._enroll([member]))
        self._demand.add(member.subscription)
        self._bus.publish(Event(event_type="router.resumed", data={"agent": name}))
        logger.warning("agent %s runs again", name)
        self._news.set()

    def _note_outage(self, member: Member, what: str, reason: str) -> None:
        name, outage = member.subscription.name, member.fail(reason, trio.current_time())
        pause = CURE.delay(outage.count, 0.0)
        logger.error(
            "agent %s %s: %s; it is tried again in %g s, or at once with: omniactors agent restart %s",
            name,
            what,
            reason,
            pause,
            name,
        )
        told = {"agent": name, "reason": reason, "tries": outage.count, "next_in": pause}
        self._bus.publish(Event(event_type="agent.down", data=told))
        self._news.set()

    def _gave_up(self, member: Member, reason: str) -> None:
        """Take no more events for it, and give back what it holds: others may handle it."""
        self._note_outage(member, "gave up", reason)
        self._close(member.subscription)
        self._settler.withdraw(member.subscription.groups)
        self._bus.publish(Event(event_type="router.paused", data={"agent": member.subscription.name, "why": "gave up"}))

    def _close(self, subscription: Subscription) -> None:
        """Take no more events for it, and give back what nobody has begun."""
        lane = subscription.lane
        lane.is_closed = True
        self._demand.remove(subscription)
        self._settler.give_back(lane, [delivery.key for delivery in lane.clear()])

    def _release_all(self) -> None:
        """Give back everything that no handler has begun; called when the agents have stopped."""
        self._failures.flush(math.inf)
        for member in self._roster.values():
            lane = member.subscription.lane
            self._settler.give_back(lane, [delivery.key for delivery in lane.clear()])

    def _settled(self, jobs: list[Job], fates: list[Fate]) -> None:
        drafts: list[Draft] = []
        for job, fate in zip(jobs, fates, strict=True):
            settlement = job.settlement
            if fate != "late" and (settlement.retry is not None or settlement.dead is not None):
                reader = self._by_group[settlement.key.topic, settlement.key.agent]
                self._tell_failure(job, fate, reader.subscription.options.retry.max_attempts)
            if fate != "late" and job.event is None:
                self._bus.publish_drafts(drafts)
                drafts = []
                report_unreadable(self._bus, job)
            drafts += settled_drafts(job, fate)
        self._bus.publish_drafts(drafts)

    def _tell_failure(self, job: Job, fate: Fate, max_attempts: int) -> None:
        before = self._failures.next_due()
        self._failures.note(job, fate, max_attempts=max_attempts, now=trio.current_time())
        if self._failures.next_due() != before:
            self._news.set()


def _why(error: BaseException | None, otherwise: str) -> str:
    return otherwise if error is None else described(error_info(lone_error(error)))


def _made_of(what: object) -> object:
    """What an agent without a name gets its name from."""
    return what.callback if isinstance(what, AgentConfig) else what


def _callback_name(what: object) -> str:
    made_of = _made_of(what)
    return getattr(made_of, "__name__" if isinstance(what, AgentConfig) else "__qualname__", type(made_of).__name__)


def _id_of(name: str, topics: Sequence[str], replaced: Sequence[Member], roster: Mapping[str, Member]) -> str:
    """How the runtime calls it: as what it replaces; by its name, if it is the first; with its topics."""
    if replaced:
        return replaced[0].id
    return f"{name}@{'+'.join(topics)}" if name in roster else name


def start_failure(error: ChildStartError) -> ChildStartError:
    """The innermost failure of a tree that did not start: the child that raised."""
    while isinstance(error.__cause__, ChildStartError):
        error = error.__cause__
    return error


def _described(what: object, args: tuple[Any, ...]) -> tuple[type[Agent], tuple[Any, ...], AgentOptions, Any]:
    """What to run for an Agent subclass or an AgentConfig; raises AgentError for anything else."""
    if isinstance(what, AgentConfig):
        if args:
            raise AgentError("an AgentConfig takes no further arguments")
        return CallbackAgent, (what,), what.options(), Any
    if isinstance(what, type) and issubclass(what, Agent):
        if what.handle is Agent.handle:
            raise AgentError(f"{what.__name__} needs a handle() method")
        return what, args, what.__options__, what.__content_type__
    raise AgentError(f"an agent is an Agent subclass or an AgentConfig, not {what!r}")
