"""The pool: several actors of one class behind one reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from omniactors.actors.actor import Actor, ActorChild
from omniactors.actors.control import PoolControl
from omniactors.actors.mailbox import Mailbox, MailboxQueue
from omniactors.actors.notices import MessagesLost
from omniactors.actors.refs import ActorRef
from omniactors.actors.rules import Intensity, RestartType, check_choice
from omniactors.actors.specs import WORKER_SHUTDOWN, ChildSource, ChildSpec, Flags, OnCrash
from omniactors.actors.supervisor import Supervisor
from omniactors.actors.trees import run_nested
from omniactors.actors.waiting import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from omniactors.actors.control import Control
    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.refs import ChildRef
    from omniactors.actors.rules import ExitReason
    from omniactors.actors.slot import Slot
    from omniactors.actors.specs import Child
    from omniactors.backoff import Backoff

M = TypeVar("M")

Route = Literal["shared"]


@dataclass(frozen=True)
class Pool(Generic[M]):
    """`size` actors of one class, described; made by `pool`."""

    cls: type[Actor[M]]
    args: tuple[Any, ...]
    size: int
    intensity: Intensity
    shutdown: float
    child_id: str | None = None
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


def pool(
    actor: type[Actor[M]],
    *args: Any,
    size: int,
    route: Route = "shared",
    intensity: Intensity | None = None,
    shutdown: float = WORKER_SHUTDOWN,
    name: str | None = None,
) -> Pool[M]:
    """`size` actors, each made with `args`, as one child with one reference.

    route "shared": they work from one mailbox, and whoever is free takes the next message; so the
    order in which one sender's messages are handled is not kept. Each actor is restarted by itself,
    within `intensity`, and has `shutdown` seconds to stop. `name` becomes the child's id.
    """
    if not (isinstance(actor, type) and issubclass(actor, Actor)):
        raise TypeError(f"a pool is made of an Actor subclass, not of {actor!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be an integer of at least 1, not {size!r}")
    check_choice("route", route, Route)
    return Pool(actor, args, size, intensity or Intensity(), shutdown, name)


class PoolSupervisor(Supervisor):
    """Runs the actors of a pool, which stop all at once."""

    control_type: ClassVar[type[Control]] = PoolControl


class PoolChild:
    """A pool as a child: a supervisor whose actors share a mailbox, which outlasts them all."""

    kind: Literal["worker", "supervisor"] = "supervisor"
    restart: RestartType = "permanent"

    def __init__(self, described: Pool[Any], mailbox: Mailbox, on_crash: OnCrash) -> None:
        self._pool = described
        self._mailbox = mailbox
        self._on_crash = on_crash
        self._queue: MailboxQueue | None = None

    @property
    def queue(self) -> MailboxQueue:
        """The shared queue."""
        if self._queue is None:
            raise RuntimeError("a PoolChild gets its queue with its slot")
        return self._queue

    def make_ref(self, slot: Slot) -> ChildRef:
        """A reference to talk to; its `value` is the supervisor of the actors."""
        path, supervisor = slot.path, slot.supervisor
        place = Place(path, slot.place)
        self._queue = MailboxQueue(self._mailbox, place, lambda lost: supervisor.emit(MessagesLost(path, lost)))
        return ActorRef(slot, self._queue, self._pool.cls.__handlers__)

    async def run(self, slot: Slot, status: Incarnation) -> None:
        """One life of the pool."""
        members = [
            ChildSpec(_Member(self._pool, self.queue, self._on_crash), id=number, shutdown=self._pool.shutdown)
            for number in range(1, self._pool.size + 1)
        ]
        flags = Flags(intensity=self._pool.intensity, backoff=self._pool.backoff)
        supervisor = PoolSupervisor(flags, members, path=slot.path, emit=slot.supervisor.emit)
        self.queue.place.any_of = supervisor.places()
        for place in self.queue.place.any_of:
            place.member_of = self.queue.place
        await run_nested(supervisor, status, self._stop)

    def _stop(self, supervisor: Supervisor) -> None:
        self.queue.refuse()
        supervisor.request_stop()

    def run_begins(self) -> None:
        """Take messages."""
        self.queue.open()

    def run_ended(self, reason: ExitReason) -> None:
        """Keep the queued messages for the next life, unless the spec says otherwise."""
        self.queue.place.any_of = ()
        if self._on_crash == "dead_letter" and reason.kind != "normal":
            self.queue.clear()

    def slot_closed(self, reason: ExitReason) -> None:
        """Fail the queued asks and report the queued messages."""
        self.queue.close(reason)


@dataclass(frozen=True)
class _Member:
    """One actor of a pool, as something that can be a child."""

    described: Pool[Any]
    queue: MailboxQueue
    on_crash: OnCrash

    def __child_source__(self) -> ChildSource:
        source = self.described.cls.__child_source__()

        def factory(_args: tuple[Any, ...], _mailbox: Mailbox | None, _on_crash: OnCrash | None) -> Callable[[], Child]:
            return lambda: ActorChild(
                self.described.cls,
                self.described.args,
                mailbox=Mailbox(),
                on_crash=self.on_crash,
                shared=lambda: self.queue,
                prepare=self.described.prepare,
            )

        return ChildSource(source.name, source.restart, source.shutdown, factory)
