"""The system: store, event bus, agents and gateway, put together in one place.

system (one_for_one)
|- edge (one_for_one)      bus, gateway: transient, so that one that gave up stays down
|- work (rest_for_one)     see `omniactors.agents.runtime`
'- nurse                   starts the edge again, after a growing pause

What fails in the edge never touches work: what an edge that gave up needs is a start on request, which
counts for no restart limit.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import weakref
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

import trio

from omniactors.actors.specs import ChildSpec
from omniactors.actors.trees import open_supervisor, subtree
from omniactors.agents.attempt import error_info, lone_error
from omniactors.agents.current import note_interrupted, watch_own_signals
from omniactors.agents.failures import described
from omniactors.agents.options import AgentConfig, AgentKeywords
from omniactors.agents.runtime import CURE, AgentRuntime, start_failure
from omniactors.backoff import Backoff
from omniactors.errors import (
    AgentError,
    BackendError,
    ChildStartError,
    GaveUp,
    OmniActorsError,
    SettingsError,
    SupervisionError,
)
from omniactors.events.bus import EventBus
from omniactors.events.event import Event
from omniactors.gateway.server import serve
from omniactors.operations.agents import AgentOperations
from omniactors.operations.config import ConfigOperations
from omniactors.operations.health import Health, examine, read_health, read_metrics
from omniactors.operations.results import ResultOperations
from omniactors.operations.storage import StorageOperations
from omniactors.operations.streams import StreamOperations
from omniactors.operations.tasks import BatchItem, TaskOperations
from omniactors.settings import MemoryUrl, RedisUrl, Settings, read_settings
from omniactors.signals import hearing_endings, is_main_task
from omniactors.streams.envelope import WireEvent, check_topic, new_id
from omniactors.streams.runs import require_trio
from omniactors.streams.sqlite.backend import SqliteBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from datetime import datetime
    from types import TracebackType

    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.refs import ActorRef, ChildRef
    from omniactors.actors.supervisor import Supervisor
    from omniactors.actors.trees import Subtree
    from omniactors.agents.agent import Agent
    from omniactors.gateway.config import GatewayAddress
    from omniactors.operations.health import AgentCounts
    from omniactors.settings import Address
    from omniactors.streams.backend import Backend, Finding, RuntimeRecord
    from omniactors.streams.envelope import EventEnvelope

EDGE_BACKOFF = Backoff(initial=0.1, maximum=5.0)
STEADY = 6.0
"""Seconds after which an edge that was started again counts as back: one that fails as before has given up by then."""

logger = logging.getLogger("omniactors.system")


def tell_stderr(line: str) -> None:
    """Write a line about the system to stderr."""
    with suppress(OSError, AttributeError):  # nobody reads it, or there is no stderr: no reason not to run
        sys.stderr.write(f"omniactors: {line}\n")


class OmniActors:
    """Agents on durable streams: `omni = OmniActors()`, then `publish`, or `add` and `run`.

    `url` names the store: "sqlite:///file.db" (by default .omniactors/omniactors.db below the working
    directory), "redis://host:6379/0" or "memory://"; environment and .env are asked when it is None,
    see `Settings`.
    Making one opens nothing, so it may stand at the top of a module; it connects on first use, and
    may be used in any thread and any number of `trio.run`s at a time, and after a fork; the running
    system belongs to one of them. Publishing needs neither `run` nor `shutdown`: what `publish`
    returned for is durable. Where no trio runs, its methods raise OmniActorsError.

    Raises SettingsError for a setting that is not allowed.
    """

    def __init__(self, url: str | None = None, *, settings: Settings | None = None) -> None:
        self.settings = read_settings(url) if settings is None else settings
        self.bus = EventBus()
        self._backend = open_backend(self.settings)
        self._runtime = AgentRuntime(
            self._backend,
            self.bus,
            grace=self.settings.grace,
            result_ttl=self.settings.result_ttl,
            entry_limit=self.settings.entry_limit,
        )
        self._tasks = TaskOperations(self._backend, self.bus, entry_limit=self.settings.entry_limit)
        self.agents = AgentOperations(self._backend)
        self.results = ResultOperations(self._backend, result_ttl=self.settings.result_ttl)
        self.streams = StreamOperations(self._backend)
        self.config = ConfigOperations(self._backend)
        self.storage = StorageOperations(self._backend)
        self._supervisor: Supervisor | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        """The trio run in which the system runs."""
        self._gateway_url: str | None = None
        self._gateway_port: int | None = None
        self._block: AbstractAsyncContextManager[Self] | None = None
        self._in_parent: object = None
        _systems.add(self)

    @property
    def supervisor(self) -> Supervisor:
        """The root of the running tree; raises OmniActorsError while nothing runs."""
        if self._supervisor is None:
            raise OmniActorsError("the system does not run; use omni.run() or async with OmniActors()")
        return self._supervisor

    @property
    def gateway_url(self) -> str | None:
        """Where watchers connect, while a gateway runs."""
        return self._gateway_url

    # -- tasks ----------------------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        content: Any,  # noqa: ANN401 -- any JSON value
        *,
        task_id: str | None = None,
        webhook: str | None = None,
        reply_to: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        source: str | None = None,
        tenant_id: str | None = None,
        delay: float | None = None,
        at: float | datetime | None = None,
        wait_for_room: bool = False,
    ) -> str:
        """Publish one event; returns its task id when it is durable.

        Agents get it at once, or `delay` seconds later, or at the time `at` (a datetime with a time
        zone, or Unix seconds). A `task_id` that is given is remembered for the dedupe window:
        publishing it again to the topic does nothing. Inside a handler the event carries
        correlation, causation and tenant of the event in hand along, and a retry does not publish
        it twice. Raises EnvelopeError for what cannot be published (ContentError with the path,
        EventTooLarge), BackendError when the store refused, StreamFull among them; `wait_for_room`
        waits instead, until there is room or the caller's own scope is cancelled. Cancelled, the
        event was either published or not, never in part.
        """
        event: WireEvent[Any] = WireEvent(
            content=content,
            webhook=webhook,
            reply_to=reply_to,
            topic=check_topic(topic),
            task_id=new_id() if task_id is None else task_id,
            correlation_id=correlation_id,
            causation_id=causation_id,
            source=source,
            tenant_id=tenant_id,
            created_at=time.time(),
        )
        return await self._tasks.publish_wire(
            event, is_new=task_id is None, delay=delay, at=at, wait_for_room=wait_for_room
        )

    async def publish_task(self, event_envelope: EventEnvelope[Any]) -> str:
        """Publish an event that was made before; its id is the task id, and is remembered. Raises as `publish`."""
        return await self._tasks.publish(event_envelope)

    async def publish_batch(self, events: Sequence[BatchItem]) -> list[str]:
        """Publish many events, EventEnvelopes or pairs (topic, content); returns their task ids in order.

        All are checked before the first is written; BatchFailed names what the store did not take.
        """
        return await self._tasks.publish_batch(events)

    async def get_result(self, task_id: str, *, agent: str | None = None) -> Any:  # noqa: ANN401 -- any JSON value
        """What the agent returned for the task; None until then, and once expired.

        With several agents the first success counts, `agent` picks one.
        """
        return await self._tasks.get_result(task_id, agent)

    async def wait_result(self, task_id: str, *, agent: str | None = None) -> Any:  # noqa: ANN401 -- any JSON value
        """As `get_result`, as soon as there is one. Cancellable; raises TaskFailed when it was dead-lettered."""
        return await self._tasks.wait_result(task_id, agent)

    # -- agents ---------------------------------------------------------------------------------

    def add(self, what: type[Agent] | AgentConfig, *args: Any, **keywords: Unpack[AgentKeywords]) -> str:
        """Add an agent, before the system runs or while it does; returns the agent's name.

        `args` go to the agent's `__init__`, the keywords override those of its class. One name on
        another topic is one more subscription of that agent; on the same topic it replaces the
        earlier one: that finishes what it has begun, and then the new one takes over. Raises
        AgentError, also for an agent without a name that cannot be told from another.
        """
        self._require_its_run("omni.add")
        return self._runtime.add(what, args, keywords).name

    async def register_agent(self, agent_config: AgentConfig) -> str:
        """Add an agent made of a callback; returns its name.

        Its group exists when this returns, so that nothing published from now on is missed; while
        the system runs the agent is ready. Raises AgentError, and ChildStartError when it cannot
        start.
        """
        self._require_its_run("omni.register_agent")
        if not isinstance(agent_config, AgentConfig):
            raise AgentError(f"agent_config must be an AgentConfig, not {agent_config!r}")
        subscription = self._runtime.add(agent_config, (), {})
        if self._supervisor is None:
            await self._runtime.enroll(subscription)
        else:
            await self._runtime.wait_started(subscription)
        return subscription.name

    def agent_ref(self, name: str) -> ActorRef[Any]:
        """The reference of a running agent, for messages beside its events; raises ChildNotFound."""
        return self._runtime.ref(name)

    def agent_names(self) -> list[str]:
        """The names of the agents that were added here."""
        return self._runtime.names

    def running_tasks(self) -> dict[str, int]:
        """How many events each agent handles at this moment."""
        return self._runtime.running_tasks()

    async def runtimes(self) -> list[RuntimeRecord]:
        """The runtimes that are alive on this store, in all processes."""
        return await self._backend.runtimes()

    async def metrics(self) -> dict[str, dict[str, AgentCounts]]:
        """What every agent has done so far, over all processes: counts of tries and times, by topic and agent."""
        return await read_metrics(self._backend)

    async def doctor(self) -> list[Finding]:
        """Check the store, its streams and agents: what was found, and what to change. Never raises BackendError."""
        return await examine(self._backend, stream_limit=self.settings.stream_limit)

    async def health(self) -> Health:
        """How all processes on this store do: which agents run, gave up, are paused. Never raises BackendError."""
        return await read_health(self._backend)

    # -- life -----------------------------------------------------------------------------------

    async def run(
        self,
        *,
        listen: str | None = None,
        token: str | None = None,
        allowed_hosts: Sequence[str] | None = None,
        tell: Callable[[str], None] = tell_stderr,
        on_ready: Callable[[str | None], Awaitable[None]] | None = None,
        handle_signals: bool = True,
        task_status: trio.TaskStatus[str | None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the agents until cancelled; also `await nursery.start(omni.run)`.

        Started, with the gateway's URL or None, when every agent is ready. `on_ready` is called with
        the same and awaited before the first event is taken: whatever that event does, the start was
        one. With `listen`
        ("host:port", port 0 for a free one; default: OMNIACTORS_LISTEN, else nothing) watchers can
        connect, under its own address and under the names `allowed_hosts` (default:
        OMNIACTORS_ALLOWED_HOSTS). `tell` gets the line that says what the settings chose. Cancelled, it stops in
        order: nothing new is taken, running tasks have `Settings.grace` seconds to finish, what is
        left is released and will be delivered again.

        In the main thread SIGTERM and SIGHUP stop it in order too, and a second SIGTERM at once, where
        nobody else handles them; `handle_signals=False` leaves them alone. In the main task of
        `trio.run` it returns then, and raises KeyboardInterrupt after a Ctrl-C, which lets running
        tasks finish as well; elsewhere the process ends by that signal, as soon as this has stopped.
        Raises ChildStartError when an agent cannot start, GaveUp when the system failed too often.
        """
        require_trio()
        settings = self.settings.with_gateway(listen=listen, token=token, allowed_hosts=allowed_hosts)
        scope, heard = trio.CancelScope(), list[int]()

        def hear(number: int) -> None:
            heard.append(number)
            scope.cancel(f"signal {number}")
            if heard.count(number) > 1 and number in (signal.SIGTERM, signal.SIGINT):
                self.stop_now()  # a terminal that is closed says SIGHUP twice, and means it once

        if handle_signals:
            watch_own_signals()
        with hearing_endings(hear, at_once=note_interrupted) if handle_signals else nullcontext(), scope:
            async with self._running(settings, tell) as supervisor:
                if on_ready is not None:
                    await on_ready(self._gateway_url)
                task_status.started(self._gateway_url)
                self._runtime.take_events()
                await supervisor.wait_stopping()
        if signal.SIGINT in heard:
            raise KeyboardInterrupt
        if heard and not is_main_task():
            # Who runs us beside other things does not handle it either: it ends the process, as it would without us.
            signal.raise_signal(signal.Signals(heard[0]))

    def _require_its_run(self, operation: str) -> None:
        """Raise OmniActorsError, and have nothing changed, where the system runs in another trio run than this."""
        if self._supervisor is None or self._token is None:
            return
        if not trio.lowlevel.in_trio_run() or trio.lowlevel.current_trio_token() is not self._token:
            raise OmniActorsError(
                f"the system runs in another thread's trio run: call {operation} there, "
                "by trio.from_thread.run or run_sync from a thread that it started"
            )

    def forget_run(self) -> None:
        """Called in a child that was forked: what runs, runs in the parent."""
        # Kept: whatever ends here would tell the parent's event loop, perhaps by a lock that is taken for ever.
        self._in_parent = (self._supervisor, self._block) if self._supervisor is not None else self._in_parent
        self._supervisor = self._block = self._gateway_url = self._gateway_port = None

    def stop_now(self) -> None:
        """Drop the grace time of a stop: whatever still runs is cancelled, and will be delivered again."""
        if self._supervisor is not None:
            self._supervisor.stop_now()

    async def shutdown(self) -> None:
        """Stop what runs, in order, and let go of the store; the next call opens it again."""
        if self._supervisor is not None:
            self._require_its_run("omni.shutdown")
            self._supervisor.request_stop()
            await self._supervisor.wait_ended()
        await self._backend.close()

    async def __aenter__(self) -> Self:
        require_trio()
        if self._block is not None:
            raise OmniActorsError("the system runs already")
        self._block = self._as_block()
        try:
            return await self._block.__aenter__()
        except BaseException:
            self._block = None
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        block, self._block = self._block, None
        if block is None:
            raise RuntimeError("this OmniActors was not entered")
        return await block.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def _as_block(self) -> AsyncIterator[Self]:
        try:
            async with self._running(self.settings, tell_stderr):
                self._runtime.take_events()
                yield self
        finally:
            # A store in memory would be gone, and with it the results that the block was for.
            if not isinstance(self.settings.backend, MemoryUrl):
                with trio.CancelScope(shield=True):
                    await self._backend.close()

    @asynccontextmanager
    async def _running(self, settings: Settings, tell: Callable[[str], None]) -> AsyncIterator[Supervisor]:
        require_trio()
        if self._supervisor is not None:
            raise OmniActorsError("the system runs already")
        if self._in_parent is not None:
            raise OmniActorsError(
                "this process was forked while the system ran, and has half of it; publish with this OmniActors, "
                "and make another one to run agents here"
            )
        tell(settings.describe())
        try:
            async with open_supervisor(
                ChildSpec(self._edge(settings), restart="transient"),
                self._runtime.tree(),
                backoff=Backoff(initial=0.1, maximum=5.0),
                name="system",
                emit=self._runtime.notice,
            ) as supervisor:
                self._supervisor, self._token = supervisor, trio.lowlevel.current_trio_token()
                await self._backend.announce(self._gateway_url)
                nurse = partial(self._nurse, supervisor)
                await supervisor.start_child(ChildSpec(nurse, id="nurse", restart="temporary"))
                try:
                    yield supervisor
                finally:
                    self._runtime.note_stop()
        except ChildStartError as error:
            root = _root(error)
            raise root from root.__cause__
        finally:
            self._supervisor = self._gateway_url = self._gateway_port = None

    def _edge(self, settings: Settings) -> Subtree:
        children = [ChildSpec(self.bus.run, id="bus", restart="permanent")]
        if settings.listen is not None:
            children.append(ChildSpec(self._gateway, settings, settings.listen, id="gateway", restart="permanent"))
        return subtree(*children, name="edge", backoff=EDGE_BACKOFF)

    async def _nurse(self, supervisor: Supervisor) -> None:
        """Start the edge again when it has given up, for as long as it takes; ends when somebody stops the edge."""
        edge = supervisor.child("edge")
        tries, begun = 0, trio.current_time()
        while (failure := (await edge.wait_stopped()).error) is not None:
            tries = 1 if trio.current_time() - begun >= CURE.reset_after else tries + 1
            pause = CURE.delay(tries, 0.0)
            problem = described(error_info(_innermost(failure)))
            self._gateway_url = None
            logger.error("the gateway is down: %s; work goes on, and it is tried again in %g s", problem, pause)
            await self._announce(problem)
            with suppress(Exception):  # this task is the cure, also of a bus that is broken
                self.bus.publish(Event(event_type="gateway.down", data={"reason": problem, "next_in": pause}))
            await trio.sleep(pause)
            begun = trio.current_time()
            with suppress(SupervisionError):
                await supervisor.restart_child("edge")
                await self._vouch(edge, problem)

    async def _vouch(self, edge: ChildRef, problem: str) -> None:
        """Say that an edge that was started again is back, once it has run for a while; returns also when it ends."""
        await self._announce(problem)  # with the address: whoever comes there may find somebody
        pause = STEADY
        while True:
            with trio.move_on_after(pause):
                await edge.wait_stopped()
                return
            if await self._announce(None):
                logger.warning("the gateway is back")
                return
            pause = CURE.maximum

    async def _announce(self, problem: str | None) -> bool:
        """Have the store know where the gateway is, or why it is down; whether it does."""
        try:
            await self._backend.announce(self._gateway_url, problem)
        except BackendError as error:
            logger.warning("where the gateway is, or why it is down, is not recorded: %s", error)
            return False
        return True

    async def _gateway(self, settings: Settings, address: Address, *, task_status: Incarnation) -> None:
        """The gateway as a child. Restarted, it binds the port that it had, since watchers come back to it."""
        await serve(
            self.bus,
            host=address.host,
            port=self._gateway_port or address.port,
            token=settings.token,
            allowed_hosts=settings.allowed_hosts,
            task_status=_Bound(self, task_status),
        )

    def gateway_bound(self, address: GatewayAddress) -> None:
        """Called by the gateway when it listens."""
        self._gateway_url = address.url
        self._gateway_port = address.port


_systems: weakref.WeakSet[OmniActors] = weakref.WeakSet()


def _forget_runs() -> None:
    for system in list(_systems):
        system.forget_run()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_runs)


class _Bound:
    """The gateway's task status: notes the address on its way to the supervisor."""

    def __init__(self, system: OmniActors, status: Incarnation) -> None:
        self._system = system
        self._status = status

    def started(self, value: GatewayAddress | None = None) -> None:
        if value is not None:
            self._system.gateway_bound(value)
        self._status.started(value)


def open_backend(settings: Settings) -> Backend:
    """The store that the settings name; opens nothing yet. Raises SettingsError for what only the store can judge."""
    url = settings.backend
    if isinstance(url, RedisUrl):
        from omniactors.streams.redis.backend import RedisBackend  # noqa: PLC0415 -- redis loads for its users alone

        try:
            return RedisBackend(
                url.secret,
                prefix=settings.prefix,
                lease=settings.lease,
                dedupe_window=settings.dedupe_window,
                stream_limit=settings.stream_limit,
            )
        except ValueError as error:
            raise SettingsError(f"{settings.chosen_by}: {error}") from None
    return SqliteBackend(
        None if isinstance(url, MemoryUrl) else url.path,
        synchronous="FULL" if settings.synchronous == "full" else "NORMAL",
        dedupe_window=settings.dedupe_window,
        stream_limit=settings.stream_limit,
    )


def _innermost(error: BaseException) -> BaseException:
    """What made a tree give up or not start, without the trees and groups around it."""
    error = lone_error(error)
    while isinstance(error, GaveUp | ChildStartError) and error.__cause__ is not None:
        error = lone_error(error.__cause__)
    return error


def _root(error: ChildStartError) -> BaseException:
    """The failure itself, without the trees around it; our own errors speak for themselves."""
    innermost = start_failure(error)
    return innermost.__cause__ if isinstance(innermost.__cause__, OmniActorsError) else innermost
