"""The actor: a class whose instances handle messages one at a time, in a task of their own."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, cast

from omniactors.actors.cell import Cell
from omniactors.actors.mailbox import Mailbox, MailboxQueue
from omniactors.actors.messages import HandlerTable, become_table, build_table
from omniactors.actors.notices import MessagesLost
from omniactors.actors.refs import ActorRef
from omniactors.actors.replies import ReplyHandle
from omniactors.actors.rules import ExitReason
from omniactors.actors.snapshots import Snapshots
from omniactors.actors.specs import WORKER_SHUTDOWN, ChildSource
from omniactors.actors.watching import Down

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from outcome import Outcome

    from omniactors.actors.hooks import ActorHooks
    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.lanes import Lane
    from omniactors.actors.refs import ChildRef
    from omniactors.actors.registry import Registry
    from omniactors.actors.rules import RestartType
    from omniactors.actors.slot import Slot
    from omniactors.actors.specs import Child, OnCrash
    from omniactors.actors.supervisor import Supervisor
    from omniactors.actors.timers import Timers

T = TypeVar("T")
M_contra = TypeVar("M_contra", contravariant=True)


DEFAULT_MAILBOX = Mailbox()


class Actor(Generic[M_contra]):
    """Base of all actors. Methods marked with `@on` handle messages; `__init__` is plain and cheap.

    The optional parameter names the messages, so that `tell` is checked statically:
    `class Counter(Actor[Add | Total])`. A handler that raises crashes the actor, and its
    supervisor restarts it with the arguments it was first given; queued messages wait for that.
    """

    __handlers__: ClassVar[HandlerTable] = HandlerTable()
    _attached: ActorContext | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Build the handler table; raises TypeError for a handler that cannot work."""
        super().__init_subclass__(**kwargs)
        cls.__handlers__ = build_table(cls)

    @classmethod
    def __child_source__(cls) -> ChildSource:
        """How to run this class as a child."""

        def factory(args: tuple[Any, ...], mailbox: Mailbox | None, on_crash: OnCrash | None) -> Callable[[], Child]:
            return partial(ActorChild, cls, args, mailbox=mailbox or DEFAULT_MAILBOX, on_crash=on_crash or "keep")

        return ChildSource(cls.__name__, "permanent", WORKER_SHUTDOWN, factory)

    def __attach__(self, context: ActorContext) -> None:
        """Called once by the runtime, after `__init__`."""
        self._attached = context

    @property
    def _context(self) -> ActorContext:
        if self._attached is None:
            raise RuntimeError("an actor has no ref or supervisor inside __init__; on_start() is the place for that")
        return self._attached

    @property
    def ref(self) -> ActorRef[Any]:
        """The actor's own reference; there is none inside `__init__`."""
        return self._context.ref

    @property
    def supervisor(self) -> Supervisor:
        """The supervisor that runs this actor; there is none inside `__init__`."""
        return cast("Supervisor", self._context.slot.supervisor)

    @property
    def registry(self) -> Registry:
        """The tree's registry, where `register(key)` registers this actor; there is none inside `__init__`."""
        return self.supervisor.registry.seen_by(self.ref)

    def stop(self) -> None:
        """End normally after the current message. A permanent actor is then started again, as in OTP."""
        self._context.cell.leave()

    @property
    def timers(self) -> Timers:
        """Messages to itself, later: `once`, `every`, `cancel`."""
        return self._context.cell.timers

    def watch(self, ref: ChildRef) -> None:
        """Have `Down(ref, reason)` handled when the child's present incarnation ends, ahead of other messages.

        At once when none is alive. Raises UnhandledMessage when the actor has no handler for Down.
        """
        self._context.cell.check_handled(Down(ref, ExitReason.NORMAL))
        self._context.cell.watches.add(ref)

    def unwatch(self, ref: ChildRef) -> None:
        """Watch it no more; a `Down` that is on its way is not handled."""
        self._context.cell.watches.remove(ref)

    def start_soon(
        self,
        work: Callable[..., Awaitable[T]],
        *args: Any,
        then: Callable[[Outcome[T]], object] | None = None,
    ) -> None:
        """Run `work(*args)` beside the messages, for as long as this incarnation lives.

        With `then` its `outcome.Outcome` comes back as the message `then(outcome)`, ahead of others;
        without one an error crashes the actor. What still runs is cancelled when the actor ends,
        after its last message and before `on_stop`.
        """
        self._context.cell.start_soon(work, args, then)

    def reply_later(self) -> ReplyHandle:
        """Owe the reply to the ask in hand: the handler returns `NoReply`, and the reply goes through the handle."""
        return ReplyHandle(self._context.cell.reply_later(), self.ref.path)

    def stash(self, message: object) -> None:
        """Put the message in hand aside until `unstash_all`; it keeps its room in the mailbox.

        For an ask the handler returns `NoReply`: it is answered when it is handled again. What is
        put aside when the actor restarts comes first then, and is reported as lost when it stops.
        """
        self._context.cell.stash(message)

    def unstash_all(self) -> None:
        """Have what was put aside handled next, in its order."""
        self._context.cell.unstash_all()

    def become(self, *handlers: Callable[[Any], Awaitable[Any]]) -> None:
        """From the next message on, have these bound methods of `self` handle their types; none: as the class says.

        Each is marked with `@on`, or has a parameter that is annotated with a type the class
        handles; other types stay where they were. Raises TypeError for any other.
        """
        self._context.cell.become(become_table(type(self), self.__handlers__, handlers) if handlers else None)

    def snapshot(self) -> Any:  # noqa: ANN401 -- whatever the actor's state is
        """What to offer to the next incarnation, taken after each message that was handled; a copy.

        It is offered at most twice in a row: a state that cannot be worked with is dropped.
        """
        return NotImplemented

    def restore(self, state: Any) -> None:  # noqa: ANN401 -- what snapshot() returned
        """Begin with the state of an earlier incarnation; called before `lifespan` and `on_start`."""
        raise NotImplementedError(f"{type(self).__name__} has no restore() method")

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        """Resources of one incarnation: an async context manager around all that it does.

        Entered before the actor counts as started, left after its last message, in the actor's own
        task; so it may hold nurseries and cancel scopes.
        """
        return nullcontext()

    async def on_start(self) -> None:
        """Called before the actor counts as started; raising makes the start fail."""

    async def on_stop(self, reason: ExitReason) -> None:
        """Called after the last message, within the grace time; not when the actor was cancelled."""

    def __lane__(self) -> Lane | None:
        """A second source of work, beside the mailbox; each item goes to `__work__`."""
        return None

    async def __work__(self, item: Any) -> None:  # noqa: ANN401 -- whatever the lane holds
        """Handle one item of the lane."""
        raise NotImplementedError(f"{type(self).__name__} has a lane, so it needs a __work__ method")


class ActorContext:
    """What the runtime gives to an actor."""

    __slots__ = ("cell", "ref", "slot")

    def __init__(self, slot: Slot, ref: ActorRef[Any], cell: Cell) -> None:
        self.slot = slot
        self.ref = ref
        self.cell = cell


class ActorChild:
    """An actor class as a child: its mailbox outlasts its incarnations."""

    __slots__ = ("_args", "_cls", "_mailbox", "_on_crash", "_prepare", "_queue", "_shared", "_snapshots")

    kind: Literal["worker", "supervisor"] = "worker"
    restart: RestartType = "permanent"

    def __init__(
        self,
        cls: type[Actor[Any]],
        args: tuple[Any, ...],
        *,
        mailbox: Mailbox,
        on_crash: OnCrash,
        shared: Callable[[], MailboxQueue] | None = None,
        prepare: Callable[[Any], None] | None = None,
    ) -> None:
        self._cls = cls
        self._args = args
        self._mailbox = mailbox
        self._on_crash = on_crash
        self._shared = shared
        self._prepare = prepare
        self._snapshots = Snapshots() if cls.snapshot is not Actor.snapshot else None
        self._queue: MailboxQueue | None = None

    def make_ref(self, slot: Slot) -> ChildRef:
        """A reference to talk to."""
        path, supervisor = slot.path, slot.supervisor
        self._queue = MailboxQueue(self._mailbox, slot.place, lambda lost: supervisor.emit(MessagesLost(path, lost)))
        return ActorRef(slot, self._queue, self._cls.__handlers__)

    async def run(self, slot: Slot, status: Incarnation) -> None:
        """Make the actor and let it work until its end."""
        actor = self._cls(*self._args)
        if self._prepare is not None:
            self._prepare(actor)
        queues = [self.queue] if self._shared is None else [self.queue, self._shared()]
        cell = Cell(
            cast("ActorHooks", actor),
            queues,
            self._cls.__handlers__,
            status=status,
            grace=slot.spec.shutdown,
            snapshots=self._snapshots,
        )
        ref = cast("ActorRef[Any]", slot.ref)
        actor.__attach__(ActorContext(slot, ref, cell))
        try:
            state = self._snapshots.offer() if self._snapshots is not None else None
            if state is not None:
                actor.restore(*state)
            if self._cls.lifespan is Actor.lifespan:
                await cell.run(ref, actor.__lane__())
            else:
                async with actor.lifespan():
                    await cell.run(ref, actor.__lane__())
        finally:
            await cell.finish()
            cell.forget()

    @property
    def queue(self) -> MailboxQueue:
        """The actor's own queue."""
        if self._queue is None:
            raise RuntimeError("an ActorChild gets its queue with its slot")
        return self._queue

    def forget_arguments(self) -> None:
        """Keep the arguments no longer; the actor itself may."""
        self._args = ()

    def run_begins(self) -> None:
        """Take messages."""
        self.queue.open()

    def run_ended(self, reason: ExitReason) -> None:
        """Keep the queued messages for the next incarnation, unless the spec says otherwise."""
        if self._on_crash == "dead_letter" and reason.kind == "crash":
            self.queue.clear()
        if self._snapshots is not None and reason.kind in ("normal", "shutdown"):
            self._snapshots.worked()

    def slot_closed(self, reason: ExitReason) -> None:
        """Fail the queued asks and report the queued messages."""
        self.queue.close(reason)
        if self._snapshots is not None:
            self._snapshots.clear()
