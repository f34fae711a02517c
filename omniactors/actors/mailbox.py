"""The mailbox: a bounded queue with one rule for overflow, from many senders to one or more actors."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Literal

import outcome
import trio

from omniactors.actors.home import check_thread, this_thread
from omniactors.actors.lanes import Source
from omniactors.actors.rules import check_choice
from omniactors.errors import ActorStopped, MailboxFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from omniactors.actors.lanes import Parker
    from omniactors.actors.rules import ExitReason
    from omniactors.actors.waiting import Place
    from omniactors.errors import DeadlockError

Overflow = Literal["wait", "reject", "drop_newest", "drop_oldest"]


@dataclass(frozen=True)
class Mailbox:
    """How many messages may wait for an actor, and what happens to one too many.

    "wait": `tell` waits for room, `tell_nowait` raises MailboxFull. "reject": both raise it.
    "drop_newest" drops the message that came, "drop_oldest" the one that waited longest; drops are
    counted in `ActorRef.statistics()`.
    """

    capacity: int = 128
    overflow: Overflow = "wait"

    def __post_init__(self) -> None:
        """Raises ValueError for a capacity below 1 and for an unknown overflow rule."""
        if isinstance(self.capacity, bool) or not isinstance(self.capacity, int) or self.capacity < 1:
            raise ValueError(f"Mailbox.capacity must be an integer of at least 1, not {self.capacity!r}")
        check_choice("Mailbox.overflow", self.overflow, Overflow)


class Ask:
    """A message whose sender waits for the reply; the sender may give up at any time."""

    __slots__ = ("asker", "deadline", "is_disowned", "message", "task")

    def __init__(self, message: object, task: trio.lowlevel.Task, deadline: float, asker: Place | None) -> None:
        self.message = message
        self.task: trio.lowlevel.Task | None = task
        self.deadline = deadline
        """The asker's deadline in trio's time, as it was when it asked: past it probably nobody waits."""
        self.is_disowned = False
        """Whether the return of the handler that has it now is no reply to it."""
        self.asker = asker
        """The asker's place in the wait-for graph, when it is a child."""

    def reply(self, value: object) -> None:
        """Wake the asker with `value`; dropped when it has given up."""
        self.finish(outcome.Value(value))

    def fail(self, error: Exception) -> None:
        """Wake the asker with an exception; dropped when it has given up."""
        self.finish(outcome.Error(error))

    def finish(self, result: outcome.Outcome[object]) -> None:
        """Wake the asker with `result`; only the first call counts."""
        task = self.task
        if task is not None:
            trio.lowlevel.reschedule(task, result)  # raises in a thread without trio, and nothing has changed then
            self.give_up()

    def give_up(self) -> None:
        """Note that nobody waits for the reply any more."""
        self.task = None
        # At once, not when the asker runs again: until then it would seem to wait.
        if self.asker is not None:
            self.asker.go_on()


class Waiting:
    """A message whose sender waits for room."""

    __slots__ = ("message", "sender", "task")

    def __init__(self, message: object, task: trio.lowlevel.Task, sender: Place | None) -> None:
        self.message = message
        self.task: trio.lowlevel.Task | None = task
        self.sender = sender

    def finish(self, result: outcome.Outcome[None]) -> None:
        """Let the sender go on; only the first call counts."""
        task = self.task
        if task is not None:
            self.go_on()
            trio.lowlevel.reschedule(task, result)

    def go_on(self) -> None:
        """Note that the sender waits no longer."""
        self.task = None
        if self.sender is not None:
            self.sender.go_on()


class Batch:
    """How many messages one actor has taken since they were added up last: twice as quick as adding up each."""

    __slots__ = ("taken",)

    def __init__(self) -> None:
        self.taken = 0


class MailboxQueue(Source):
    """The queue behind a `Mailbox`. Lives as long as its slot, so it outlasts a restart.

    Several actors may work from one queue (a pool). Senders that wait for room are served in the
    order in which they came, so the messages of one sender keep their order.
    """

    __slots__ = (
        "_closed",
        "_reason",
        "_taken",
        "batches",
        "config",
        "controls",
        "dropped",
        "limit",
        "messages",
        "on_control",
        "on_lost",
        "place",
        "senders",
        "stashed",
        "thread",
        "token",
    )

    def __init__(self, config: Mailbox, place: Place, on_lost: Callable[[int], None]) -> None:
        super().__init__()
        self.config = config
        self.place = place
        """Where the queue stands in the wait-for graph: at its actor, or at its pool."""
        self.messages: deque[object] = deque()
        self.limit = config.capacity
        """Below this many messages one may be appended with nothing else to do: 0 when somebody is to be woken."""
        self._taken = 0
        self.batches: list[Batch] | None = None
        """Of those who take messages now; None before the first message."""
        self.dropped = 0
        # Made when they are first needed: nearly all stay empty, and an empty deque takes 700 bytes of every actor.
        self.stashed: deque[object] | tuple[()] = ()
        """Messages that their actor put aside; they take room as if they were queued."""
        self.controls: dict[Ask, None] | tuple[()] = ()
        """Requests to the runtime about the actor: ahead of all messages, and not bounded."""
        self.on_control: Callable[[], None] | None = None
        """Tells the running actor that there is a control."""
        self.token: trio.lowlevel.TrioToken | None = None
        """The trio run that the actor lives in."""
        self.thread = this_thread()
        """The thread of that run: no other may touch the queue."""
        self.on_lost = on_lost
        """Told how many messages were thrown away because the actor ended."""
        self._closed = False
        self._reason: ExitReason | None = None
        self.senders: OrderedDict[Ask | Waiting, None] = OrderedDict()
        """Who waits for room, in the order in which they came."""

    @property
    def path(self) -> str:
        """Whose queue it is."""
        return self.place.path

    @property
    def taken(self) -> int:
        """How many messages were taken out, to be handled or not."""
        return self._taken + sum(batch.taken for batch in self.batches or ())

    def count(self, batch: Batch) -> None:
        """Add up what was taken in a batch, which begins anew."""
        self._taken += batch.taken
        batch.taken = 0

    @property
    def accepted(self) -> int:
        """How many messages were ever let in."""
        return self.taken + len(self.messages) + len(self.stashed)

    @property
    def is_full(self) -> bool:
        """Whether one more message is one too many."""
        return len(self.messages) + len(self.stashed) >= self.config.capacity

    def put_nowait(self, message: object) -> None:
        """Append `message`, or apply the overflow rule.

        Raises MailboxFull (rules "wait" and "reject") and ActorStopped.
        """
        if self._closed:
            raise self.stopped(message.message if isinstance(message, Ask) else message)
        if get_ident() != self.thread:
            self.check_thread()
        if len(self.messages) >= self.config.capacity - len(self.stashed) and not self._make_room(message):
            return
        self.messages.append(message)
        if self._idle:
            self.wake_one()

    def check_thread(self) -> None:
        """Raise RuntimeError in any thread but that of the actor's trio run."""
        check_thread(self.thread, self.path, "ref.from_thread.tell() or ref.from_thread.ask()")

    async def wait_for_room(self, message: object, sender: Place | None) -> None:
        """Append `message` as soon as there is room.

        Cancellable: then it was not appended. Raises ActorStopped when the queue closes meanwhile,
        and DeadlockError when there can never be room since `sender` waits.
        """
        task = trio.lowlevel.current_task()
        waiting = Waiting(message, task, sender)
        if sender is not None:
            sender.wait_for(self.place, lambda error: self._fail_sender(waiting, error))
        self.senders[waiting] = None

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self.senders.pop(waiting, None)
            waiting.go_on()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def wait_for_reply(self, ask: Ask) -> object:
        """Enqueue `ask`, waiting for room if need be, and wait for its answer.

        Cancellable: still queued it is withdrawn and was not handled; once its handler has begun
        the outcome is unknown and the reply is dropped. Raises DeadlockError when no answer can
        ever come since the asker waits.
        """
        if ask.asker is not None:
            ask.asker.wait_for(self.place, lambda error: self._fail_ask(ask, error))
        try:
            if self.config.overflow == "wait" and not self._closed and self.is_full:
                self.senders[ask] = None
            else:
                self.put_nowait(ask)
        except BaseException:
            ask.give_up()
            raise

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            ask.give_up()
            self.withdraw(ask)
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    def admit(self) -> None:
        """Let in the sender that has waited longest, if there is room; called after each message taken."""
        if self.senders and not self.is_full:
            waiting, _ = self.senders.popitem(last=False)
            if isinstance(waiting, Ask):
                self.messages.append(waiting)
            else:
                self.messages.append(waiting.message)
                waiting.finish(outcome.Value(None))
            if self._idle:
                self.wake_one()

    @property
    def has_work(self) -> bool:
        """Whether messages are queued."""
        return bool(self.messages)

    def add_idle(self, parker: Parker) -> None:
        """See `Source`."""
        self._idle[parker] = None
        self.limit = 0

    def discard_idle(self, parker: Parker) -> None:
        """See `Source`."""
        if self._idle.pop(parker, self) is None and not self._idle:
            self._set_limit()

    def open(self) -> None:
        """Take messages (again); what an earlier incarnation put aside comes first."""
        self._closed = False
        self._reason = None
        self.token = trio.lowlevel.current_trio_token()
        self.thread = this_thread()
        self.unstash()
        self._set_limit()

    def refuse(self) -> None:
        """Take no more messages; those that are queued stay. Waiting senders get ActorStopped."""
        self._closed = True
        self._set_limit()
        while self.senders:
            waiting, _ = self.senders.popitem(last=False)
            waiting.finish(outcome.Error(self.stopped(waiting.message)))

    def close(self, reason: ExitReason) -> None:
        """Refuse, fail the queued asks and throw the other queued messages away, which is reported."""
        self._reason = reason
        self.refuse()
        self.clear()
        while (control := self.take_control()) is not None:
            control.fail(self.stopped(control.message))

    async def control(self, ask: Ask) -> object:
        """Have the runtime do something about the actor, between two messages; returns the answer.

        Cancellable; raises ActorStopped when the actor ends first.
        """
        if self._closed:
            raise self.stopped(ask.message)
        if self.place.any_of:
            raise TypeError(f"{self.path} is a pool: its actors are controlled one by one")
        if ask.asker is not None:
            ask.asker.wait_for(self.place, ask.fail)
        if not isinstance(self.controls, dict):
            self.controls = {}
        self.controls[ask] = None
        if self.on_control is not None:
            self.on_control()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            ask.give_up()
            if isinstance(self.controls, dict):
                self.controls.pop(ask, None)
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    def take_control(self) -> Ask | None:
        """The control that waits longest, which waits no longer."""
        for control in self.controls:
            if isinstance(self.controls, dict):
                del self.controls[control]
            return control
        return None

    def stash(self, message: object, batch: Batch) -> None:
        """Put a message aside. One that was taken from here, in `batch`, keeps its room and is taken later."""
        if self.batches and batch in self.batches:
            self._taken -= 1
        if not isinstance(self.stashed, deque):
            self.stashed = deque()
        self.stashed.append(message)
        self._set_limit()

    def unstash(self) -> None:
        """Put what was put aside back in front, in its order."""
        stashed, self.stashed = self.stashed, ()
        self.messages.extendleft(reversed(stashed))
        self._set_limit()

    def clear(self) -> None:
        """Fail the queued asks with ActorStopped and throw the other queued messages away."""
        lost = 0
        self.unstash()
        while self.messages:
            message = self.messages.popleft()
            self._taken += 1
            if isinstance(message, Ask):
                message.fail(self.stopped(message.message))
            else:
                lost += 1
        while self.senders and not self.is_full:
            self.admit()
        if lost:
            self.on_lost(lost)

    def stopped(self, message: object) -> ActorStopped:
        """The error for a `message` that can no longer be delivered."""
        return ActorStopped(self.path, message, self._reason)

    def _make_room(self, message: object) -> bool:
        """Apply the overflow rule to a full queue; False when `message` itself was dropped."""
        overflow = self.config.overflow
        if overflow in ("wait", "reject"):
            raise MailboxFull(self.path, message.message if isinstance(message, Ask) else message, self.config.capacity)
        self.dropped += 1
        if overflow == "drop_newest":
            victim = message
        elif self.stashed:
            victim = self.stashed.popleft()
            self._taken += 1
            self._set_limit()
        else:
            victim = self.messages.popleft()
            self._taken += 1
        if isinstance(victim, Ask):
            error = MailboxFull(self.path, victim.message, self.config.capacity)
            if victim is message:
                raise error
            victim.fail(error)
        return overflow != "drop_newest"

    def withdraw(self, ask: Ask) -> None:
        """Take `ask` out, wherever it waits; harmless when its handler has begun."""
        if ask in self.senders:
            del self.senders[ask]
            return
        if _remove(self.messages, ask) or _remove(self.stashed, ask):
            self._taken += 1
            self._set_limit()
            self.admit()

    def _fail_ask(self, ask: Ask, error: DeadlockError) -> None:
        self.withdraw(ask)
        ask.fail(error)

    def _fail_sender(self, waiting: Waiting, error: DeadlockError) -> None:
        self.senders.pop(waiting, None)
        waiting.finish(outcome.Error(error))

    def _set_limit(self) -> None:
        self.limit = 0 if self._closed or self._idle else self.config.capacity - len(self.stashed)


def _remove(waiting: deque[object] | tuple[()], ask: Ask) -> bool:
    """Take `ask` out; False when it is not there. Not `deque.remove`, which calls what messages have for `==`."""
    for index, message in enumerate(waiting):
        if message is ask and isinstance(waiting, deque):
            del waiting[index]
            return True
    return False
