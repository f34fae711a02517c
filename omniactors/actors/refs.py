"""References: how the rest of a program holds on to a child, over restarts and after its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Self, TypeVar, overload

import trio

from omniactors.actors.controls import GetState, ReplaceState, Resume, Suspend
from omniactors.actors.mailbox import Ask
from omniactors.actors.threads import ThreadRef
from omniactors.actors.waiting import current_place
from omniactors.errors import MailboxFull, UnhandledMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from omniactors.actors.controls import Control
    from omniactors.actors.inspection import ChildInfo
    from omniactors.actors.mailbox import MailboxQueue
    from omniactors.actors.messages import HandlerTable, Request
    from omniactors.actors.registry import Registry
    from omniactors.actors.rules import ExitReason
    from omniactors.actors.slot import Slot

M_contra = TypeVar("M_contra", contravariant=True)
R = TypeVar("R")

Status = Literal["starting", "running", "stopping", "restarting", "stopped"]


@dataclass(frozen=True)
class ActorStatistics:
    """What a mailbox and its actor did so far, over all incarnations.

    `queued` messages wait now, `waiting_senders` says whether somebody waits for room, `accepted`
    were taken in, `dropped` fell to the overflow rule.
    """

    queued: int
    capacity: int
    accepted: int
    dropped: int
    waiting_senders: bool
    incarnation: int


class ChildRef:
    """Points at a child's slot, so it survives restarts; cheap to keep after the child's end.

    A child has one reference: so references to the same child are equal, and a copy is the reference itself.
    """

    __slots__ = ("_slot",)

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    @property
    def id(self) -> Hashable:
        """The child's id under its supervisor."""
        return self._slot.id

    @property
    def path(self) -> str:
        """The names from the root supervisor down to the child, joined by '/'."""
        return self._slot.path

    @property
    def status(self) -> Status:
        """What the child does now; "restarting" covers the wait for a backoff."""
        return self._slot.state

    @property
    def incarnation(self) -> int:
        """How often the child was started, from 1."""
        return self._slot.incarnation

    @property
    def value(self) -> Any:  # noqa: ANN401 -- whatever the child handed to started()
        """What the running child gave to `task_status.started()`; None when it is not running."""
        return self._slot.value

    @property
    def registry(self) -> Registry:
        """The registry of the child's tree."""
        return self._slot.supervisor.registry

    async def stop(self) -> None:
        """Ask the child to stop, give it its grace time, then cancel it; it is not restarted.

        Returns when it has ended; at once when it already has. Raises DeadlockError when an actor
        stops itself so (`self.stop()` does). Cancelled midway, the stop goes on by itself.
        """
        await self._slot.stop()

    async def stop_now(self) -> None:
        """Cancel the child without grace; it is not restarted. Returns when it has ended."""
        await self._slot.stop_now()

    def inspect(self) -> ChildInfo:
        """What the child is doing at this moment, with everything below it; see `ChildInfo`."""
        return self._slot.inspect()

    def call_at_end(self, told: Callable[[ExitReason], None]) -> None:
        """Have `told` called with the reason when the present incarnation ends; at once if none is alive.

        It must neither wait nor raise. `Actor.watch` is the same for actors, as a message.
        """
        self._slot.call_at_end(told)

    def forget_at_end(self, told: Callable[[ExitReason], None]) -> None:
        """Take `call_at_end(told)` back; harmless when it was called already."""
        self._slot.forget_at_end(told)

    async def wait_stopped(self) -> ExitReason:
        """Wait until the child has ended and is not about to be restarted; cancellable."""
        return await self._slot.wait_stopped()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the reference to {self.path} is good in its own process only and cannot be pickled; "
            "send the child's path, or what it is to be asked"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path} {self.status}, incarnation {self.incarnation}>"


class ActorRef(ChildRef, Generic[M_contra]):
    """The way to talk to an actor. Messages keep the order of their sender.

    Every verb raises UnhandledMessage for a type that the actor has no handler for, and
    ActorStopped (which holds the message) once it has ended or is stopping.
    """

    __slots__ = ("_exact", "_handlers", "_queue")

    def __init__(self, slot: Slot, queue: MailboxQueue, handlers: HandlerTable) -> None:
        super().__init__(slot)
        self._queue = queue
        self._handlers = handlers
        self._exact = handlers.exact

    def tell_nowait(self, message: M_contra) -> None:
        """Put `message` into the mailbox without waiting; raises MailboxFull when there is no room.

        RuntimeError in another thread than that of the actor's trio run, as from every verb.
        """
        queue = self._queue
        # The usual case in one flat path: with a call a message `tell_nowait` takes 1.4x as long.
        messages = queue.messages
        if type(message) in self._exact and len(messages) < queue.limit and get_ident() == queue.thread:
            messages.append(message)
            return
        if not self._handlers.accepts(type(message)):
            raise self._unhandled(message)
        queue.put_nowait(message)

    async def tell(self, message: M_contra) -> None:
        """Put `message` into the mailbox; waits for room if the overflow rule says so.

        A checkpoint; cancelled, the message was not sent. Raises MailboxFull under the rule
        "reject" and when an actor would wait for itself; DeadlockError when the wait could never
        end.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self.tell_nowait(message)
        except MailboxFull:
            if self._queue.config.overflow != "wait":
                raise
            await self._tell_when_room(message)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()

    @overload
    async def ask(self, message: Request[R]) -> R: ...

    @overload
    async def ask(self, message: M_contra) -> Any: ...  # noqa: ANN401 -- a plain message does not name its reply

    async def ask(self, message: object) -> object:
        """Send `message` and wait for what its handler returns. Always ends.

        Raises AskFailed, from the handler's exception; ActorStopped when the actor ends first;
        DeadlockError, with the path, when it waits for the caller itself; MailboxFull under a rule
        other than "wait". Cancelled while queued, the request is withdrawn; cancelled later, its
        outcome is unknown. The caller's deadline travels along: an expired request is skipped.
        """
        if type(message) not in self._exact and not self._handlers.accepts(type(message)):
            raise self._unhandled(message)
        if get_ident() != self._queue.thread:
            self._queue.check_thread()
        await trio.lowlevel.checkpoint_if_cancelled()
        deadline = trio.current_effective_deadline()
        return await self._queue.wait_for_reply(Ask(message, trio.lowlevel.current_task(), deadline, current_place()))

    @property
    def queue(self) -> MailboxQueue:
        """Where its messages wait: for inspection, not for sending."""
        return self._queue

    @property
    def from_thread(self) -> ThreadRef[M_contra]:
        """`tell` and `ask` for other threads, which they block; see `ThreadRef`."""
        return ThreadRef(self, self._queue.token)

    async def suspend(self) -> None:
        """Have the actor handle no messages until `resume`; returns when the one in hand is done.

        What concerns the actor itself (timers, watches, background work, controls) goes on. Raises
        ActorStopped, and DeadlockError when an actor suspends itself so. Cancellable.
        """
        await self._control(Suspend())

    async def resume(self) -> None:
        """Have a suspended actor go on, in order; raises as `suspend`."""
        await self._control(Resume())

    async def get_state(self) -> Any:  # noqa: ANN401 -- whatever the actor's state is
        """The actor's state between two messages: its `snapshot()`, or else a dict of its public attributes.

        It is not a copy. Raises as `suspend`.
        """
        return await self._control(GetState())

    async def replace_state(self, state: Any) -> None:  # noqa: ANN401 -- whatever the actor's restore() takes
        """Give the actor another state between two messages, through its `restore`; raises what that raises."""
        await self._control(ReplaceState(state))

    async def _control(self, control: Control) -> Any:  # noqa: ANN401 -- each control has an answer of its own
        self._queue.check_thread()
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._queue.control(Ask(control, trio.lowlevel.current_task(), math.inf, current_place()))

    def statistics(self) -> ActorStatistics:
        """Counts of the mailbox, now."""
        queue = self._queue
        return ActorStatistics(
            queued=len(queue.messages),
            capacity=queue.config.capacity,
            accepted=queue.accepted,
            dropped=queue.dropped,
            waiting_senders=bool(queue.senders),
            incarnation=self.incarnation,
        )

    async def _tell_when_room(self, message: object) -> None:
        sender = current_place()
        if sender is self._queue.place:
            raise MailboxFull(self.path, message, self._queue.config.capacity)
        await self._queue.wait_for_room(message, sender)

    def _unhandled(self, message: object) -> UnhandledMessage:
        return UnhandledMessage(self.path, message, self._handlers.names)
