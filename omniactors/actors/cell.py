"""The cell: the loop of one incarnation of one actor."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import outcome
import trio

from omniactors.actors.background import Background
from omniactors.actors.mailbox import Ask, MailboxQueue, Parker
from omniactors.actors.replies import Owed, is_no_reply
from omniactors.actors.rules import ExitReason
from omniactors.actors.timers import Timers
from omniactors.actors.watching import Watches
from omniactors.errors import ActorStopped, AskFailed, UnhandledMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outcome import Outcome

    from omniactors.actors.background import Work
    from omniactors.actors.controls import Control
    from omniactors.actors.hooks import ActorHooks
    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.lanes import Lane, Source
    from omniactors.actors.messages import Handler, HandlerTable
    from omniactors.actors.refs import ActorRef
    from omniactors.actors.snapshots import Snapshots

News = Callable[[], Awaitable[None]]

BATCH = 32
"""Messages between two looks at the clock: a look costs as much as a small handler."""
TIME_SLICE = 0.001
"""Seconds an actor may work before it lets other tasks run, if its handlers never wait by themselves."""


class Cell:
    """Takes messages from its queues, the actor's own first, and items from its lane, one at a time.

    Ahead of them goes what concerns the actor itself: news (of those it watches, of its background
    work), timers that are due, controls. Asked to stop it takes no new messages, handles those that
    are queued, and ends; the lane is left alone. When another incarnation is to follow, what is
    queued is left to that one. Cancelled it ends at the next message whatever the handlers do.
    """

    __slots__ = (
        "_actor",
        "_asked",
        "_background",
        "_handlers",
        "_has_attention",
        "_is_cancelled",
        "_is_suspended",
        "_lane",
        "_left",
        "_news",
        "_owed",
        "_parker",
        "_queues",
        "_slice_end",
        "_snapshots",
        "_sources",
        "_status",
        "_table",
        "_timers",
        "_watches",
        "ask_in_hand",
    )

    def __init__(
        self,
        actor: ActorHooks,
        queues: Sequence[MailboxQueue],
        handlers: HandlerTable,
        *,
        status: Incarnation,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._actor = actor
        self._queues = tuple(queues)
        self._table = self._handlers = handlers
        self._status = status
        self._snapshots = snapshots
        """Where to keep the actor's state after each message, if it says what that is."""
        self._lane: Lane | None = None
        self._sources: tuple[Source, ...] = self._queues
        self._parker = Parker()
        self._asked = False
        self._has_attention = False
        """Something is to be looked at before the next message."""
        self._is_cancelled = self._is_suspended = self._left = False
        self._slice_end = 0.0
        self.ask_in_hand: Ask | None = None
        """The ask whose handler runs now."""
        # Made when they are first used: most actors have none of them.
        self._news: deque[News] | None = None
        self._timers: Timers | None = None
        self._watches: Watches | None = None
        self._background: Background | None = None
        self._owed: Owed | None = None

    async def run(self, ref: ActorRef[Any], lane: Lane | None) -> None:
        """Work until asked to stop; raises whatever a handler raised."""
        if lane is not None:
            self._lane = lane
            self._sources = (*self._queues, lane)
        try:
            await self._actor.on_start()
            self._status.on_stop = self._stop
            self._status.on_kill = self._cancel
            self._queues[0].on_control = self._attend
            self._has_attention = True
            self._status.started(ref)
            # What follows is not a function of its own: an idle actor stands here, and each frame costs memory.
            try:
                await self._work()
            except Exception as error:
                await self._leave_behind()
                await self._say_goodbye(error)
                raise
            finally:
                self._let_go()
            await self._leave_behind()
            await self._actor.on_stop(ExitReason.SHUTDOWN if self._asked else ExitReason.NORMAL)
        finally:
            await self.finish()

    async def finish(self) -> None:
        """End for good: of what was begun beside the messages, at whatever time, nothing goes on; idempotent."""
        if self._watches is not None:
            self._watches.clear()
        await self._leave_behind()

    def _let_go(self) -> None:
        """Hear of nothing more."""
        self._queues[0].on_control = None
        if self._watches is not None:
            self._watches.clear()
        for queue in self._queues[1:]:
            queue.pass_on()

    # -- what the actor itself asks for -----------------------------------------------------------

    def leave(self) -> None:
        """End normally after the current message."""
        self._left = self._has_attention = True

    @property
    def timers(self) -> Timers:
        """The timers of this incarnation."""
        if self._timers is None:
            self._timers = Timers(trio.current_time, self.check_handled, self._parker.wake)
        return self._timers

    @property
    def watches(self) -> Watches:
        """Whom this incarnation watches."""
        if self._watches is None:
            self._watches = Watches(lambda down, is_wanted: self._tell(lambda: self._deliver(down, is_wanted)))
        return self._watches

    def start_soon(self, work: Work, args: tuple[Any, ...], then: Callable[[Outcome[Any]], object] | None) -> None:
        """Run background work; its outcome comes back as the message that `then` makes of it."""
        if self._background is None:
            if self._status.nursery is None:
                raise RuntimeError("background work can be started while the actor runs")
            self._background = Background(self._status.nursery, self._queues[0].path)
        self._background.start(lambda result: self._tell(lambda: self._finished(result, then)), work, *args)

    def stash(self, message: object) -> None:
        """Put the message in hand aside."""
        ask = self.ask_in_hand
        if ask is not None and ask.message is message:
            if ask.is_disowned:
                return
            self._disown(ask)
            if ask.task is None:  # nobody waits for it any more
                return
            message = ask
        self._queues[0].stash(message)

    def unstash_all(self) -> None:
        """Have what was put aside handled next."""
        self._queues[0].unstash()

    def become(self, handlers: HandlerTable | None) -> None:
        """Handle messages by this table from the next one on; None is the class's own."""
        self._handlers = handlers if handlers is not None else self._table
        self._has_attention = True

    def reply_later(self) -> Ask | None:
        """Owe the ask in hand its reply; None when the message in hand was only told."""
        ask = self.ask_in_hand
        if ask is not None and not ask.is_disowned:
            self._disown(ask)
            if self._owed is None:
                self._owed = Owed()
            self._owed.add(ask)
        return ask

    def check_handled(self, message: object) -> None:
        """Raise UnhandledMessage unless the actor has a handler for the message."""
        if not self._table.accepts(type(message)):
            raise UnhandledMessage(self._queues[0].path, message, self._table.names)

    # -- what the runtime asks for ------------------------------------------------------------------

    def suspend(self) -> None:
        """Handle no messages and no items until resumed; timers, news and controls go on."""
        self._is_suspended = self._has_attention = True
        for queue in self._queues[1:]:
            queue.pass_on()

    def resume(self) -> None:
        """Go on where it was suspended."""
        self._is_suspended = False

    @property
    def actor(self) -> ActorHooks:
        """The actor itself: for controls, between two messages."""
        return self._actor

    def _stop(self) -> None:
        self._asked = True
        if self._status.for_restart or self._is_suspended:
            self.leave()
        else:
            self._queues[0].refuse()
        self._parker.wake()

    def _cancel(self) -> None:
        self._is_cancelled = self._has_attention = True

    def _attend(self) -> None:
        self._has_attention = True
        self._parker.wake()

    def _tell(self, news: News) -> None:
        if self._news is None:
            self._news = deque()
        self._news.append(news)
        self._attend()

    # -- the loop -----------------------------------------------------------------------------------

    async def _work(self) -> None:
        self._slice_end = time.perf_counter() + TIME_SLICE
        while not self._left:
            is_busy = self._has_attention and await self._look_around()
            if self._timers is not None and not self._asked:
                is_busy = await self._handle_due_timer() or is_busy
            if not self._is_suspended and not self._left and (self._lane is not None or self._has_messages()):
                is_busy = await self._take_turns() or is_busy
            if is_busy:
                if self._is_cancelled or time.perf_counter() >= self._slice_end:
                    await trio.lowlevel.checkpoint()
                    self._slice_end = time.perf_counter() + TIME_SLICE
            elif self._asked:
                return
            elif not self._left and not self._has_attention:
                await self._wait_for_work()

    def _has_messages(self) -> bool:
        for queue in self._queues:  # noqa: SIM110 -- any() takes three times as long
            if queue.messages:
                return True
        return False

    async def _take_turns(self) -> bool:
        """Handle some messages of each queue, then items of the lane; False when there was nothing."""
        is_busy = False
        for queue in self._queues:
            if queue.messages:
                is_busy = True
                await self._drain(queue)
        while (lane := self._lane) is not None and not self._asked and not self._has_attention:
            item = lane.take()
            if item is None:
                break
            is_busy = True
            await self._actor.__work__(item)
            if self._snapshots is not None:
                self._snapshots.take(self._actor.snapshot())
            if self._timers is not None or self._has_messages() or time.perf_counter() >= self._slice_end:
                break  # whatever else there is goes first
        return is_busy

    async def _drain(self, queue: MailboxQueue) -> None:
        """Handle up to BATCH messages. The hot path: kept in one flat loop, 1.5x faster than with a call a message."""
        messages = queue.messages
        handlers = self._handlers
        actor = self._actor
        snapshots = self._snapshots
        taken = 0
        try:
            while messages and taken < BATCH and not self._has_attention:
                message = messages.popleft()
                taken += 1
                if queue.senders:
                    queue.admit()
                handler = handlers.get(type(message))
                if handler is None:
                    await self._handle_other(message)
                else:
                    await handler(actor, message)
                if snapshots is not None:
                    snapshots.take(actor.snapshot())
        finally:
            queue.taken += taken

    async def _handle_other(self, message: object) -> None:
        """Handle an ask, or a message of a type that a base's handler takes."""
        if isinstance(message, Ask):
            await self._handle_ask(message)
        else:
            await self._handler_of(message)(self._actor, message)

    def _handler_of(self, message: object) -> Handler:
        if not self._handlers.accepts(type(message)):
            raise UnhandledMessage(self._queues[0].path, message, self._handlers.names)
        return self._handlers[type(message)]

    async def _handle_ask(self, message: Ask) -> None:
        if message.deadline <= trio.current_time():
            # By the next turn trio has cancelled an asker whose deadline this is, unless it was moved.
            await trio.lowlevel.cancel_shielded_checkpoint()
        if message.task is None:
            return
        if message.asker is not None and len(self._queues) > 1:
            # Taken from a pool's queue: from now on it is this actor, not any of them.
            message.asker.hold(self._queues[0].place)
        handler = self._handler_of(message.message)
        self.ask_in_hand, message.is_disowned = message, False
        try:
            value = await handler(self._actor, message.message)
        except Exception as error:
            failure = AskFailed(self._queues[0].path, message.message)
            failure.__cause__ = error
            message.fail(failure)
            raise
        except BaseException:
            message.fail(self._queues[0].stopped(message.message))
            raise
        finally:
            self.ask_in_hand = None
        if message.is_disowned:
            return
        if is_no_reply(value):
            message.fail(TypeError(f"the handler of {type(message.message).__name__} did not call reply_later()"))
        message.reply(value)

    def _disown(self, ask: Ask) -> None:
        """The handler's return is no reply to this ask, and its asker waits for nobody in particular."""
        ask.is_disowned = True
        if ask.asker is not None and ask.task is not None:
            ask.asker.go_on()

    # -- ahead of messages ----------------------------------------------------------------------------

    async def _look_around(self) -> bool:
        """Do what goes ahead of messages; False when it was nothing."""
        self._has_attention = False
        if self._is_cancelled:
            await trio.lowlevel.checkpoint()
        is_busy = False
        for control in self._queues[0].take_controls():
            is_busy = True
            if control.task is not None:
                control.finish(outcome.capture(cast("Control", control.message).perform, self))
        # Those that are here now: handling them may bring others, for ever, and then other tasks must run too.
        for _ in range(len(self._news or ())):
            if self._news and not self._left:
                is_busy = True
                await self._news.popleft()()
        return is_busy

    async def _handle_due_timer(self) -> bool:
        message = self._timers.take_due(trio.current_time()) if self._timers is not None else None
        if message is None:
            return False
        await self._handle_own(message)
        return True

    async def _handle_own(self, message: object) -> None:
        """Handle a message that came from no mailbox."""
        await self._handler_of(message)(self._actor, message)
        if self._snapshots is not None:
            self._snapshots.take(self._actor.snapshot())

    async def _deliver(self, message: object, is_wanted: Callable[[], bool]) -> None:
        if is_wanted():
            await self._handle_own(message)

    async def _finished(self, result: Outcome[Any], then: Callable[[Outcome[Any]], object] | None) -> None:
        if then is None:
            if not self._asked or not self._is_about_the_end(result):
                result.unwrap()
        else:
            await self._handle_own(then(result))

    def _is_about_the_end(self, result: Outcome[Any]) -> bool:
        """Whether background work failed since it talked to this very actor, which takes no messages any more."""
        error = result.error if isinstance(result, outcome.Error) else None
        return isinstance(error, ActorStopped) and error.path == self._queues[0].path

    async def _wait_for_work(self) -> None:
        parker = self._parker
        for source in self._sources:
            if not self._is_suspended:
                source.add_idle(parker)
        try:
            due = math.inf if self._timers is None else self._timers.next_due()
            if due == math.inf:
                await parker.park()
            else:
                with trio.move_on_at(due):
                    await parker.park()
        finally:
            for source in self._sources:
                source.discard_idle(parker)
            self._slice_end = time.perf_counter() + TIME_SLICE

    # -- the end --------------------------------------------------------------------------------------

    async def _leave_behind(self) -> None:
        """Nothing that this incarnation began goes on after it."""
        self._fail_owed()
        if self._background is not None:
            await self._background.finish()

    def _fail_owed(self) -> None:
        if self._owed is not None:
            self._owed.fail_all(self._queues[0].stopped)

    async def _say_goodbye(self, error: Exception) -> None:
        """Call `on_stop` for a crash; what it raises itself is noted on the crash, which stays the reason."""
        try:
            await self._actor.on_stop(ExitReason.crash(error))
        except Exception as second:  # noqa: BLE001 -- the first error is the reason of the exit
            error.add_note(f"on_stop failed too: {second!r}")


MESSAGE_LOOP = Cell._drain.__code__  # noqa: SLF001 -- inspection finds the message in hand in this frame
