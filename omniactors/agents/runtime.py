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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import trio

from omniactors.actors import notices
from omniactors.actors.dynamic import DynamicSupervisor
from omniactors.actors.pool import pool
from omniactors.actors.rules import Intensity
from omniactors.actors.specs import ChildSpec
from omniactors.actors.trees import Subtree, subtree
from omniactors.agents.agent import Agent, CallbackAgent
from omniactors.agents.attempt import error_info, lone_error
from omniactors.agents.demand import Demand
from omniactors.agents.failures import FailureLog, described
from omniactors.agents.options import AgentConfig, AgentKeywords, AgentOptions, stable_name
from omniactors.agents.reports import report_notice, report_unreadable, settled_drafts
from omniactors.agents.router import Router
from omniactors.agents.settler import Fate, Job, Settler, severity
from omniactors.agents.subscription import Services, Subscription
from omniactors.agents.webhooks import WebhookAgent
from omniactors.backoff import Backoff
from omniactors.errors import AgentError, BackendError, ChildError, ChildStartError, GaveUp
from omniactors.events.event import Event
from omniactors.streams.backend import AgentRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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


@dataclass
class Outage:
    """An agent that gave up: why, how often in a row, and when it is tried again (on trio's clock)."""

    reason: str
    count: int
    due: float
    is_being_tried: bool = False


class Member:
    """One agent of the roster: its subscription, what to run, and whether it runs."""

    def __init__(self, subscription: Subscription, cls: type[Agent], args: tuple[Any, ...], callback: str) -> None:
        self.subscription = subscription
        self.cls = cls
        self.args = args
        self.callback = callback
        self.outage: Outage | None = None
        self.relapses = 0
        self.up_since = 0.0
        self.started = trio.Event()
        self.error: Exception | None = None

    def reset(self) -> None:
        """Be as before the first run."""
        self.outage = None
        self.relapses = 0
        self.started = trio.Event()
        self.error = None
        self.subscription.lane.reset()

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
        return ChildSpec(described, id=self.subscription.name, restart="transient", mailbox=options.mailbox)

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
                callback=self.callback,
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
        self._agents = DynamicSupervisor(name="agents")
        self._news = trio.Event()
        self._is_up = False
        self._failures = FailureLog()
        self._reported: tuple[list[tuple[str, str]], dict[str, str]] | None = None
        self.add(WebhookAgent, (), {})

    def add(self, what: object, args: tuple[Any, ...], keywords: AgentKeywords) -> Subscription:
        """Put an agent on the roster; raises AgentError. While the runtime runs it is started soon."""
        cls, args, options, content_type, callback = _described(what, args)
        options = options.override(keywords)
        name = options.name or stable_name(what.callback if isinstance(what, AgentConfig) else what, options.topics)
        if name in self._roster:
            raise AgentError(f"there is an agent {name!r} already; give one of them another name=")
        try:
            subscription = Subscription(
                options, name=name, content_type=content_type, services=self._services, on_room=self._demand.room
            )
        except TypeError as error:
            raise AgentError(f"agent {name!r}: its content cannot be decoded to {content_type!r}: {error}") from error
        self._roster[name] = Member(subscription, cls, args, callback)
        self._news.set()
        return subscription

    async def wait_started(self, name: str) -> None:
        """Wait until an agent of a running runtime is ready; raises what kept it from starting."""
        member = self._roster[name]
        await member.started.wait()
        if member.error is not None:
            raise member.error

    async def enroll(self, name: str) -> None:
        """Make the agent's groups and registry entry, without running it."""
        await self._enroll([self._roster[name]])

    def tree(self) -> Subtree:
        """The work half of the system, for one run."""
        self._is_up = False
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

    def ref(self, name: str) -> ActorRef[Any]:
        """The reference of a running agent; raises ChildNotFound."""
        return cast("ActorRef[Any]", self._agents.child(name))

    @property
    def names(self) -> list[str]:
        """The names of the agents that users added."""
        return [name for name, member in self._roster.items() if member.cls is not WebhookAgent]

    def running_tasks(self) -> dict[str, int]:
        """How many events each agent handles at this moment."""
        return {name: member.subscription.lane.handling for name, member in self._roster.items()}

    def notice(self, notice: Notice) -> None:
        """Take note of what happened in the tree, and tell the bus."""
        at = {f"{self._agents.path}/{name}": name for name in self._roster}
        report_notice(self._bus, notice, at)
        if isinstance(notice, notices.SupervisorGaveUp):
            name = at.get(notice.path)
            if name is not None:
                self._gave_up(self._roster[name], _why(notice.reason.error, str(notice.reason)))
        elif isinstance(notice, notices.ChildExited) or (isinstance(notice, notices.ChildStartFailed) and self._is_up):
            # A first start that fails is raised to whoever runs the system, so it is not logged as well.
            error = notice.reason.error
            if error is not None and not isinstance(error, ChildStartError | GaveUp):
                agent = at.get(notice.path.rpartition("/")[0])
                who = notice.path if agent is None else f"agent {agent}"
                self._failures.note_crash(who, error_info(lone_error(error)), now=trio.current_time())
                self._news.set()

    def held_events(self) -> dict[str, int]:
        """How many events of each agent are in memory here: waiting, being handled, being written."""
        return {name: member.subscription.lane.held for name, member in self._roster.items()}

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
        started: set[str] = set()
        self._reported = None
        await self._hire(started)
        await self._report()
        self._is_up = True
        task_status.started()
        async with trio.open_nursery() as cures:
            while True:
                self._news = trio.Event()
                await self._hire(started)
                await self._look_after(cures)
                self._failures.flush(trio.current_time())
                with trio.move_on_at(min(self._next_look(), self._failures.next_due())):
                    await self._news.wait()

    async def _hire(self, started: set[str]) -> None:
        """Start those that were not started since the tree was; raises the first failure of the very first start."""
        is_first = not self._is_up
        fresh = [member for name, member in self._roster.items() if name not in started and member.outage is None]
        if not fresh:
            return
        for member in fresh:
            started.add(member.subscription.name)
            try:
                await self._agents.start_child(member.spec(self._grace))
            except ChildStartError as error:
                member.error = ChildStartError(member.subscription.name)
                member.error.__cause__ = start_failure(error).__cause__
                if is_first:
                    raise member.error from member.error.__cause__
                self._gave_up(member, _why(member.error.__cause__, str(member.error)))
            else:
                member.up_since = trio.current_time()
        ready = [member for member in fresh if member.error is None]
        # All groups of a runtime exist before its first fetch; one whose agent cannot start would only hold events up.
        await self._persist(lambda: self._enroll(ready))
        for member in ready:
            self._demand.add(member.subscription)
        for member in fresh:
            member.started.set()

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

    def _standing(self) -> tuple[list[tuple[str, str]], dict[str, str]]:
        """Which groups are served here, and which agents gave up and why."""
        up = [member.subscription for member in self._roster.values() if member.outage is None]
        down = {name: member.outage.reason for name, member in self._roster.items() if member.outage is not None}
        return [group for subscription in up for group in subscription.groups], down

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
        for name, member in self._roster.items():
            outage = member.outage
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
            cause = start_failure(error).__cause__
            self._note_outage(member, "does not start", _why(cause, str(error)))
            return
        member.outage = None
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
        lane = member.subscription.lane
        lane.is_closed = True
        self._demand.remove(member.subscription)
        self._settler.give_back(lane, [delivery.key for delivery in lane.clear()])
        self._settler.withdraw(member.subscription.groups)
        self._bus.publish(Event(event_type="router.paused", data={"agent": member.subscription.name, "why": "gave up"}))

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
            if fate != "late":
                subscription = self._roster[settlement.key.agent].subscription
                if settlement.retry is None and settlement.dead is None:
                    subscription.handled += 1
                else:
                    subscription.failed += 1
                    self._tell_failure(job, fate, subscription.options.retry.max_attempts)
                if job.event is None:
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
    return otherwise if error is None else described(error_info(error))


def start_failure(error: ChildStartError) -> ChildStartError:
    """The innermost failure of a tree that did not start: the child that raised."""
    while isinstance(error.__cause__, ChildStartError):
        error = error.__cause__
    return error


def _described(what: object, args: tuple[Any, ...]) -> tuple[type[Agent], tuple[Any, ...], AgentOptions, Any, str]:
    """What to run for an Agent subclass or an AgentConfig; raises AgentError for anything else."""
    if isinstance(what, AgentConfig):
        if args:
            raise AgentError("an AgentConfig takes no further arguments")
        return CallbackAgent, (what,), what.options(), Any, getattr(what.callback, "__name__", repr(what.callback))
    if isinstance(what, type) and issubclass(what, Agent):
        if what.handle is Agent.handle:
            raise AgentError(f"{what.__name__} needs a handle() method")
        return what, args, what.__options__, what.__content_type__, what.__qualname__
    raise AgentError(f"an agent is an Agent subclass or an AgentConfig, not {what!r}")
