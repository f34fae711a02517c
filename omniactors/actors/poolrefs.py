"""References to pools: as to one actor, and with a size."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from omniactors.actors.refs import ActorRef, ActorStatistics

if TYPE_CHECKING:
    from omniactors.actors.messages import HandlerTable, Request
    from omniactors.actors.refs import Status
    from omniactors.actors.slot import Slot
    from omniactors.actors.team import RoutedQueue, SharedQueue

M_contra = TypeVar("M_contra", contravariant=True)
R = TypeVar("R")


@dataclass(frozen=True)
class MemberStatistics:
    """One actor of a pool. `queued` messages wait for it alone: none but direct ones when the queue is shared."""

    number: int
    status: Status
    incarnation: int
    queued: int


@dataclass(frozen=True, kw_only=True)
class PoolStatistics(ActorStatistics):
    """As of one actor, all queues taken together (`capacity` is that of each), and one line for each member."""

    size: int
    members: tuple[MemberStatistics, ...]


class Crew(Protocol):
    """What a reference needs of its pool."""

    @property
    def size(self) -> int:
        """How many members there are to be."""
        ...

    @property
    def team(self) -> SharedQueue | RoutedQueue:
        """The pool's queues."""
        ...

    async def resize(self, size: int) -> None:
        """Start or stop members until there are `size`."""
        ...

    def members(self) -> tuple[MemberStatistics, ...]:
        """The members there are, by number."""
        ...


class PoolRef(ActorRef[M_contra]):
    """The way to talk to a pool: the verbs of `ActorRef` reach one of its members, as its route says."""

    __slots__ = ("_crew",)

    def __init__(self, slot: Slot, handlers: HandlerTable, crew: Crew) -> None:
        super().__init__(slot, crew.team, handlers)
        self._crew = crew

    @property
    def size(self) -> int:
        """How many members the pool is to have: as described, or as `resize` said."""
        return self._crew.size

    async def resize(self, size: int) -> None:
        """Have `size` members; returns when the new ones are ready, or those too many have ended.

        The newest leave: each finishes the message in hand, within its grace time, and what is queued
        for it goes to the others at once. New ones start one after the other. Members that were
        stopped by hand are started again. Resizes are done one after the other. The size outlasts
        restarts of members; when the pool itself is restarted, it begins as it was described.

        Raises ValueError for a size below 1, SupervisorClosed when the pool is not running or
        stops meanwhile, ChildStartError when a new member does not start (those before it stay), and DeadlockError
        when a member would so wait for its own end. Cancelled midway, members that were told to
        leave do so, and the one that was being started is not there.
        """
        self._queue.check_thread()
        await self._crew.resize(size)

    def statistics(self) -> PoolStatistics:
        """Counts of the pool and of each member, now."""
        queues = list(self._crew.team.queues())
        of_one = super().statistics()
        counts: dict[str, Any] = {field.name: getattr(of_one, field.name) for field in fields(of_one)}
        counts["queued"] = sum(len(queue.messages) for queue in queues)
        counts["dropped"] = sum(queue.dropped for queue in {self._crew.team, *queues})
        counts["waiting_senders"] = any(queue.senders for queue in queues)
        return PoolStatistics(**counts, size=self.size, members=self._crew.members())


class BroadcastRef(PoolRef[M_contra]):
    """The way to talk to a pool whose members get every message: an ask gives a reply of each."""

    __slots__ = ()

    @overload  # type: ignore[override]  # an ask to many has many replies, and so another type
    async def ask(self, message: Request[R]) -> list[R]: ...

    @overload
    async def ask(self, message: M_contra) -> list[Any]: ...

    async def ask(self, message: Any) -> Any:
        """Send `message` to all members and wait for their replies: a list, by their numbers.

        The first error ends it, and what no member has begun to handle is withdrawn. It raises and
        is cancelled as `ActorRef.ask`. A member that leaves before it begins gives no reply.
        """
        return await super().ask(message)
