"""The pool: several actors of one class behind one reference."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import trio

from omniactors.actors.actor import Actor, ActorChild
from omniactors.actors.broadcast import BroadcastQueue
from omniactors.actors.mailbox import Mailbox
from omniactors.actors.members import PoolSupervisor
from omniactors.actors.notices import MessagesLost
from omniactors.actors.poolrefs import BroadcastRef, MemberStatistics, PoolRef
from omniactors.actors.refs import ActorRef
from omniactors.actors.routes import Key, Route, chooser
from omniactors.actors.rules import Intensity, RestartType, check_choice
from omniactors.actors.specs import WORKER_SHUTDOWN, ChildSource, ChildSpec, Flags, OnCrash
from omniactors.actors.team import MemberQueue, RoutedQueue, SharedQueue, take_all
from omniactors.actors.trees import run_nested
from omniactors.actors.waiting import Place
from omniactors.errors import SupervisorClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.mailbox import MailboxQueue
    from omniactors.actors.refs import ChildRef
    from omniactors.actors.rules import ExitReason
    from omniactors.actors.slot import Slot
    from omniactors.actors.specs import Child
    from omniactors.actors.supervisor import Supervisor
    from omniactors.backoff import Backoff

M = TypeVar("M")


@dataclass(frozen=True)
class Pool(Generic[M]):
    """`size` actors of one class, described; made by `pool`."""

    cls: type[Actor[M]]
    args: tuple[Any, ...]
    size: int
    intensity: Intensity
    shutdown: float
    child_id: str | None = None
    route: Route = "shared"
    key: Key | None = None
    backoff: Backoff | None = None
    prepare: Callable[[Any], None] | None = None
    """Called with each new actor, before it is started: how a runtime hands something to its own kind of actor."""

    def __child_source__(self) -> ChildSource:
        """How to run this as a child."""

        def factory(_args: tuple[Any, ...], mailbox: Mailbox | None, on_crash: OnCrash | None) -> Callable[[], Child]:
            if _args:
                raise ValueError("the arguments of its actors are given to pool()")
            return lambda: PoolChild(self, mailbox or Mailbox(), on_crash or "keep")

        return ChildSource(f"{self.cls.__name__}-pool", "permanent", math.inf, factory, self.child_id)


class BroadcastPool(Pool[M]):
    """A pool whose members get every message: its reference is another one."""


@overload
def pool(
    actor: type[Actor[M]],
    *args: Any,
    size: int,
    route: Literal["broadcast"],
    intensity: Intensity | None = None,
    shutdown: float = WORKER_SHUTDOWN,
    name: str | None = None,
) -> BroadcastPool[M]: ...


@overload
def pool(
    actor: type[Actor[M]],
    *args: Any,
    size: int,
    route: Route = "shared",
    key: Key | None = None,
    intensity: Intensity | None = None,
    shutdown: float = WORKER_SHUTDOWN,
    name: str | None = None,
) -> Pool[M]: ...


def pool(
    actor: type[Actor[M]],
    *args: Any,
    size: int,
    route: Route = "shared",
    key: Key | None = None,
    intensity: Intensity | None = None,
    shutdown: float = WORKER_SHUTDOWN,
    name: str | None = None,
) -> Pool[M]:
    """`size` actors, each made with `args`, as one child with one reference.

    With the route "shared" they work from one mailbox, and whoever is free takes the next message;
    so the order in which one sender's messages are handled is not kept. With any other each has a
    mailbox of its own: "round_robin" and "random" pass over members whose mailbox is full,
    "least_loaded" takes the one with the fewest messages queued and in hand, "consistent_hash" sends
    what has the same `key` (the name of an attribute of the messages, or a function of them) to the
    same member, in order, and "broadcast" sends everything to all.

    Each actor is restarted by itself, within `intensity`, and has `shutdown` seconds to stop.
    `name` becomes the child's id. Raises TypeError or ValueError for what can never work.
    """
    if not (isinstance(actor, type) and issubclass(actor, Actor)):
        raise TypeError(f"a pool is made of an Actor subclass, not of {actor!r}")
    _check_size(size)
    check_choice("route", route, Route)
    if (key is not None) != (route == "consistent_hash"):
        raise ValueError("the route 'consistent_hash' needs a key, and no other route has one")
    if key is not None and not isinstance(key, str) and not callable(key):
        raise TypeError(f"key must be the name of an attribute, or a function of the message, not {key!r}")
    kind: type[Pool[M]] = BroadcastPool if route == "broadcast" else Pool
    return kind(actor, args, size, intensity or Intensity(), shutdown, name, route, key)


class PoolChild:
    """A pool as a child: a supervisor of its members, and queues that outlast them all."""

    kind: Literal["worker", "supervisor"] = "supervisor"
    restart: RestartType = "permanent"

    def __init__(self, described: Pool[Any], mailbox: Mailbox, on_crash: OnCrash) -> None:
        self.described = described
        self.on_crash = on_crash
        self.size = described.size
        """How many members there are to be now."""
        self._mailbox = mailbox
        self._team: SharedQueue | RoutedQueue | None = None
        self._supervisor: PoolSupervisor | None = None
        self._resizing = trio.Lock()

    @property
    def team(self) -> SharedQueue | RoutedQueue:
        """The pool's queues."""
        if self._team is None:
            raise RuntimeError("a PoolChild gets its queues with its slot")
        return self._team

    def make_ref(self, slot: Slot) -> ChildRef:
        """A reference to talk to; its `value` is the supervisor of the actors."""
        path, supervisor = slot.path, slot.supervisor
        self._team = self._new_team(Place(path, slot.place), lambda lost: supervisor.emit(MessagesLost(path, lost)))
        kind = BroadcastRef if self.described.route == "broadcast" else PoolRef
        return kind(slot, self.described.cls.__handlers__, self)

    def _new_team(self, place: Place, on_lost: Callable[[int], None]) -> SharedQueue | RoutedQueue:
        route = self.described.route
        if route == "shared":
            return SharedQueue(self._mailbox, place, on_lost)
        kind = BroadcastQueue if route == "broadcast" else RoutedQueue
        chosen = chooser(route, self.described.key, random.randrange)  # noqa: S311 -- a route, not a secret
        return kind(self._mailbox, place, on_lost, chosen)

    async def run(self, slot: Slot, status: Incarnation) -> None:
        """One life of the pool."""
        parent = slot.supervisor
        self._supervisor = PoolSupervisor(
            Flags(intensity=self.described.intensity, backoff=self.described.backoff),
            [self._spec(number) for number in range(1, self.size + 1)],
            path=slot.path,
            emit=parent.emit,
            registry=parent.registry,
        )
        await run_nested(self._supervisor, status, self._stop)

    def _spec(self, number: int) -> ChildSpec:
        return ChildSpec(_Member(self, number), id=number, shutdown=self.described.shutdown)

    def _stop(self, supervisor: Supervisor) -> None:
        self.team.refuse()
        supervisor.request_stop()

    def forget_arguments(self) -> None:
        """Nothing to forget: its actors are restarted with them."""

    def run_begins(self) -> None:
        """Take messages."""
        self.size = self.described.size
        self.team.begin_life(self.size)

    def run_ended(self, reason: ExitReason) -> None:
        """Keep the queued messages for the next life, unless the spec says otherwise."""
        self._supervisor = None
        self.team.end_life()
        if self.on_crash == "dead_letter" and reason.kind != "normal":
            self.team.clear()

    def slot_closed(self, reason: ExitReason) -> None:
        """Fail the queued asks and report the queued messages."""
        self.team.close(reason)

    # -- what its reference asks ------------------------------------------------------------------

    async def resize(self, size: int) -> None:
        """See `PoolRef.resize`."""
        _check_size(size)
        await trio.lowlevel.checkpoint()
        self._running().check_not_leaving()
        async with self._resizing:
            supervisor = self._running()
            await supervisor.wait_retired()
            await self._shrink(supervisor, size)
            await self._grow(supervisor, size)

    async def _shrink(self, supervisor: PoolSupervisor, size: int) -> None:
        leaving = range(self.size, size, -1)
        supervisor.check_not_among(leaving)
        self.size = min(size, self.size)
        for number in leaving:
            self.team.leave(number)
            supervisor.retire(number, keeps_queue=self.team.leaves_at_once)
        await supervisor.wait_retired()
        if isinstance(self.team, BroadcastQueue):
            self.team.sweep()

    async def _grow(self, supervisor: PoolSupervisor, size: int) -> None:
        for number in range(1, size + 1):
            before, self.size = self.size, max(number, self.size)
            try:
                await supervisor.ensure(self._spec(number))
            except BaseException:
                if self._supervisor is supervisor:
                    self.size = before
                raise

    def _running(self) -> PoolSupervisor:
        if self._supervisor is None or self._supervisor.is_stopping:
            raise SupervisorClosed(self.team.path)
        return self._supervisor

    def members(self) -> tuple[MemberStatistics, ...]:
        """The members there are, by number; none while the pool is down."""
        if self._supervisor is None:
            return ()
        refs = sorted(self._supervisor.which_children(), key=lambda ref: int(str(ref.id)))
        return tuple(self._statistics(ref) for ref in refs)

    def _statistics(self, ref: ChildRef) -> MemberStatistics:
        number = int(str(ref.id))
        own = ref.statistics().queued if isinstance(ref, ActorRef) else 0
        return MemberStatistics(number, ref.status, ref.incarnation, own + self.team.queued_for(number))


@dataclass(frozen=True)
class _Member:
    """One actor of a pool, as something that can be a child."""

    crew: PoolChild
    number: int

    def __child_source__(self) -> ChildSource:
        source = self.crew.described.cls.__child_source__()

        def factory(_args: tuple[Any, ...], _mailbox: Mailbox | None, _on_crash: OnCrash | None) -> Callable[[], Child]:
            return lambda: MemberChild(self.crew, self.number)

        return ChildSource(source.name, source.restart, source.shutdown, factory)


class MemberChild(ActorChild):
    """One actor of a pool: works from its own mailbox, and from the queue that the pool gives it."""

    def __init__(self, crew: PoolChild, number: int) -> None:
        described = crew.described
        super().__init__(
            described.cls,
            described.args,
            mailbox=Mailbox(),
            on_crash=crew.on_crash,
            shared=lambda: self._work_queue,
            prepare=described.prepare,
        )
        self._crew = crew
        self._number = number

    def make_ref(self, slot: Slot) -> ChildRef:
        """A reference to this one actor."""
        self._work_queue: MailboxQueue = self._crew.team.recruit(self._number, slot.place)
        self._slot_owner = slot.supervisor
        return super().make_ref(slot)

    async def run(self, slot: Slot, status: Incarnation) -> None:
        """Make the actor and let it work until its end; it belongs to the team from when it is ready."""
        settle = status.on_settled

        def settled() -> None:
            if status.is_started and not status.expected and self._number <= self._crew.size:
                self._crew.team.join(self._number, self._work_queue)
            if settle is not None:
                settle()

        status.on_settled = settled
        await super().run(slot, status)

    def run_ended(self, reason: ExitReason) -> None:
        """As for any actor; a crash costs only the messages that no other member could handle."""
        super().run_ended(reason)
        if (
            self._crew.on_crash == "dead_letter"
            and reason.kind == "crash"
            and isinstance(self._work_queue, MemberQueue)
        ):
            self._work_queue.clear()

    def slot_closed(self, reason: ExitReason) -> None:
        """Leave what is queued to the others, unless all of them stop."""
        owner = self._slot_owner
        if isinstance(owner, PoolSupervisor) and not owner.is_stopping:
            self._crew.team.leave(self._number)
            self._crew.team.take_over(take_all(self.queue))
        # Also while all of them stop: one that was leaving has a queue that no next life works off.
        self._crew.team.gone(self._number, self._work_queue)
        super().slot_closed(reason)


def _check_size(size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be an integer of at least 1, not {size!r}")
