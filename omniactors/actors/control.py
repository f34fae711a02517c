"""The control task of a supervisor: starts, restarts and stops its children, one thing after the other.

Three kinds of task share one nursery. Each child runs under a shield of its own. The control task,
shielded too, does what children's ends and users' requests call for. The sentinel alone feels an
outer cancellation, and only asks the control task to stop; so whatever ends the nursery, the
children end in order.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import trio

from omniactors.actors import notices
from omniactors.actors.commands import Command, StartCommand, StopCommand
from omniactors.actors.home import check_thread, this_thread
from omniactors.actors.keeper import Keeper
from omniactors.actors.lanes import Parker
from omniactors.actors.roster import Roster
from omniactors.actors.rules import ExitReason, restart_group, should_restart
from omniactors.actors.telling import call_safely
from omniactors.errors import (
    ChildAlreadyPresent,
    ChildAlreadyStarted,
    ChildStartError,
    GaveUp,
    NameTaken,
    SupervisorClosed,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence

    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.slot import Slot, SlotOwner
    from omniactors.actors.specs import ChildSpec, Flags

T = TypeVar("T")


class _Exit(NamedTuple):
    """A child that was ready has ended."""

    slot: Slot
    run: Incarnation


class _Retry(NamedTuple):
    """A child that was to be restarted did not start; outdated when the slot's generation has moved on."""

    slot: Slot
    generation: int
    reason: ExitReason

    @property
    def is_current(self) -> bool:
        return self.slot.generation == self.generation


class _Unstarted(NamedTuple):
    """A child that somebody asked for has ended before it was ready."""

    slot: Slot
    run: Incarnation
    command: StartCommand
    is_new: bool


class Control:
    """One life of one supervisor."""

    def __init__(self, owner: SlotOwner, flags: Flags, specs: Sequence[ChildSpec]) -> None:
        self.flags = flags
        self.roster = Roster(owner, flags, specs)
        self.keeper = Keeper(owner, flags, self.roster, on_exit=self._note_exit, on_interrupt=self.request_stop)
        self.ready = trio.Event()
        """Set when all static children are ready, or the start has failed."""
        self.ended = trio.Event()
        self.body_scope = trio.CancelScope()
        self.failure: Exception | None = None
        """What ended the supervisor: a ChildStartError or a GaveUp."""
        self.is_open = False
        self.has_start_failed = False
        self._owner = owner
        self._inbox: deque[_Item] = deque()
        self._begun: Incarnation | None = None
        """The child that somebody asked for and that is not ready yet: nothing else is done until it is."""
        self._parker = Parker()
        self._is_held_up = False
        self._has_body_left = False
        self._stops_first = False
        """Whether the children are stopped before the block has left."""
        self._spares_body = False

    # -- from outside ---------------------------------------------------------------------------

    def open(self, nursery: trio.Nursery) -> None:
        """Begin to run in `nursery`."""
        self.is_open = True
        self._thread = this_thread()
        self.nursery = nursery
        self.keeper.open(nursery)
        nursery.start_soon(self._feel_cancellation, name=f"{self._owner.path} (sentinel)")
        nursery.start_soon(self._run, name=f"{self._owner.path} (supervisor)")

    def check_thread(self) -> None:
        """Raise RuntimeError in any thread but that of the run; anybody may ask about what has ended."""
        if self.is_open and not self.ended.is_set():
            check_thread(self._thread, self._owner.path, "trio.from_thread.run() with the token of its trio run")

    def leave_body(self) -> None:
        """The block is left: the children may be stopped."""
        self._has_body_left = True
        self.request_stop()

    def request_stop(self) -> None:
        """Begin to stop; idempotent, returns at once."""
        self.keeper.begin_stopping()
        self._parker.wake()

    def stop_now(self) -> None:
        """End without grace: everything left is cancelled at once."""
        for run in self.killed_with_it():
            run.kill()

    def killed_with_it(self) -> list[Incarnation]:
        """As `stop_now`, but the children are still to be killed: those of a thousand levels, without recursion."""
        self.request_stop()
        return self.keeper.killed_with_it()

    def stop_within(self, seconds: float, *, spares_body: bool) -> None:
        """Begin to stop the children, whatever the block does: it is cancelled behind them, unless it asked for it."""
        self._stops_first = True
        self._spares_body = self._spares_body or spares_body
        self.request_stop()
        if seconds < math.inf:
            self.nursery.start_soon(self._stop_at_last, seconds, name=f"{self._owner.path} (deadline)")

    async def _stop_at_last(self, seconds: float) -> None:
        with trio.move_on_after(seconds, shield=True):
            await self.ended.wait()
        if not self.ended.is_set():
            self.stop_now()

    async def request(self, command: Command[T]) -> T:
        """Have the control task perform `command`; raises SupervisorClosed when it takes no more of these."""
        await trio.lowlevel.checkpoint_if_cancelled()
        is_closed = self.ended if isinstance(command, StopCommand) else self.keeper.stopping
        if is_closed.is_set() or not self.is_open:
            raise SupervisorClosed(self._owner.path)
        command.announce(self._owner.place)
        if isinstance(command, StartCommand) and self.is_free():
            command.begin_now()  # half the scheduler's turns of a start by the control task
        else:
            self._inbox.append(command)
            self._parker.wake()
        return await command.wait()

    def is_free(self) -> bool:
        """Whether the control task has nothing to do, so that a start may begin at once."""
        return self._parker.is_parked and not self._inbox and self._begun is None

    def being_undone(self, _child_id: Hashable) -> Slot | None:
        """The child of this id whose start is being undone beside other things: none here, requests take turns."""
        return None

    # -- what commands do -------------------------------------------------------------------------

    def begin_new(self, spec: ChildSpec, command: StartCommand) -> None:
        """Begin to start a child behind the others; undone if its start fails."""
        self._refuse_when_stopping()
        known = self.roster.find(spec.id) if spec.id is not None else None
        if known is not None:
            if known.run is not None:
                raise ChildAlreadyStarted(spec.id, known.ref)
            raise ChildAlreadyPresent(spec.id)
        self._begin(self.roster.add(spec), command, is_new=True)

    def begin_again(self, slot: Slot, command: StartCommand) -> None:
        """Begin to start a stopped child; its spec stays if that fails."""
        self._refuse_when_stopping()
        self._begin(self.roster.get_stopped(slot), command, is_new=False)

    async def stop(self, slot: Slot, command: Command[None]) -> None:
        """Stop a child for good, within its grace time."""
        command.concerns(slot.place)
        was_restarting = slot.state == "restarting"
        await self.keeper.stop(slot)
        if was_restarting:
            self._close_followers()

    async def delete(self, slot: Slot) -> None:
        """Forget a stopped child."""
        self.roster.drop(self.roster.get_stopped(slot))

    def _refuse_when_stopping(self) -> None:
        if self.keeper.stopping.is_set():
            raise SupervisorClosed(self._owner.path)

    def _begin(self, slot: Slot, command: StartCommand, *, is_new: bool) -> None:
        command.on_abandon = lambda: self.keeper.abort_start(slot)
        command.concerns(slot.place)

        def settled(run: Incarnation) -> None:
            self.wait_for_start(None)
            if run.is_started and not run.expected:
                command.answer(slot.ref)
            elif self.keeper.stopping.is_set():
                command.refuse(SupervisorClosed(self._owner.path))
            else:
                self._inbox.appendleft(_Unstarted(slot, run, command, is_new))
            if self._inbox or self._is_held_up:
                self._parker.wake()

        self.wait_for_start(self.keeper.begin(slot, settled))

    def wait_for_start(self, run: Incarnation | None) -> None:
        """Do nothing else until this child is ready, or has ended before it was."""
        self._begun = run

    async def _undo(self, item: _Unstarted) -> None:
        """What was asked to be started is not wanted now, or has failed, or was stopped meanwhile."""
        slot, run, command, is_new = item
        if self.keeper.take(slot, run):
            command.answer(slot.ref)
            return
        await self.keeper.stop(slot)
        if is_new:
            self.roster.drop(slot)
        is_closed = self.keeper.stopping.is_set()
        command.refuse(SupervisorClosed(self._owner.path) if is_closed else _request_error(slot, run))

    # -- the control task -------------------------------------------------------------------------

    async def _feel_cancellation(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.request_stop()

    @trio.lowlevel.enable_ki_protection
    async def _run(self) -> None:
        with trio.CancelScope(shield=True):
            try:
                await self._start_all()
                self.ready.set()
                while not self.keeper.stopping.is_set():
                    await self._serve_one()
            finally:
                self.request_stop()
                self.ready.set()
                await self._shut_down()

    async def _start_all(self) -> None:
        for slot in self.roster.in_order():
            if self.keeper.stopping.is_set():
                return
            if not self.roster.holds(slot):
                continue
            run = await self.keeper.start(slot)
            if self.keeper.take(slot, run):
                continue
            if not run.expected and not self.keeper.stopping.is_set():
                self.failure = _start_error(slot, run)
                self.has_start_failed = True
            await self.keeper.stop(slot)
            if self.has_start_failed:
                self.request_stop()

    async def _serve_one(self) -> None:
        if self._begun is not None:
            self._is_held_up = True
            await self._parker.park()
            self._is_held_up = False
            return
        slot = self.keeper.schedule.take_due(trio.current_time())
        if slot is not None:
            await self.carry_out(self._restart_now, slot)
        elif self._inbox:
            await self._handle(self._inbox.popleft())
        else:
            await self._rest(self.keeper.schedule.next_due())

    async def _rest(self, due: float) -> None:
        """Sleep until there is something to do, at the latest at `due`."""
        if due == math.inf:
            await self._parker.park()
        else:
            with trio.move_on_at(due):
                await self._parker.park()

    async def _handle(self, item: _Item) -> None:
        if isinstance(item, StartCommand):
            await item.perform()
        elif isinstance(item, Command):
            await self.carry_out(item.perform)
        elif isinstance(item, _Exit):
            await self.carry_out(self._child_exited, item.slot, item.run)
        elif isinstance(item, _Unstarted):
            await self.carry_out(self._undo, item)
        else:
            await self.carry_out(self._retry, item)

    async def carry_out(self, action: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Do one thing to the children; the next waits for it."""
        await action(*args)

    async def _shut_down(self) -> None:
        """Let the body leave, then stop everything in reverse order."""
        if not self._stops_first:
            self.body_scope.cancel(f"supervisor {self._owner.path} ends")
        while not self._has_body_left and not self._stops_first:
            # What the body stops on its way out is stopped, or it would wait for itself.
            if self._inbox:
                await self._handle_stop(self._inbox.popleft())
            else:
                await self._parker.park()
        await self.stop_all()
        self.ended.set()
        if not self._spares_body:
            self.body_scope.cancel(f"supervisor {self._owner.path} has ended")
        while self._inbox:
            await self._handle_stop(self._inbox.popleft())
        for slot in self.roster.in_order():
            if slot.reason is None:
                slot.close(ExitReason.SHUTDOWN)

    async def _handle_stop(self, item: _Item) -> None:
        if isinstance(item, StopCommand):
            await self.carry_out(item.perform)
        elif isinstance(item, Command):
            item.refuse(SupervisorClosed(self._owner.path))
        elif isinstance(item, _Unstarted):
            item.command.refuse(SupervisorClosed(self._owner.path))

    def _note_exit(self, slot: Slot, run: Incarnation) -> None:
        self._inbox.append(_Exit(slot, run))
        self._parker.wake()

    # -- restarts ---------------------------------------------------------------------------------

    async def _child_exited(self, slot: Slot, run: Incarnation) -> None:
        """A child that was ready has ended."""
        if slot.run is not run:
            return
        reason = self.keeper.note_end(slot, run)
        if run.by_itself and should_restart(slot.spec.restart, reason) and not self.keeper.stopping.is_set():
            await self._restart(slot, reason)
            return
        self.keeper.close(slot, reason)
        if run.by_itself and self.roster.ends_all(slot):
            self._finish()

    async def _retry(self, item: _Retry) -> None:
        """A restart has failed, and counts as the next failure."""
        if item.is_current:
            await self._restart(item.slot, item.reason)

    async def _restart(self, slot: Slot, reason: ExitReason) -> None:
        """Restart a child whose end is not its last, at once or after its backoff."""
        now = trio.current_time()
        if not self.keeper.schedule.allow(now):
            self._give_up(slot, reason)
            return
        delays = [0.0]  # a backoff of the user's own that raises is none
        call_safely(lambda: delays.append(self.keeper.schedule.delay(slot, now, random.random())))  # noqa: S311 -- jitter
        delay = delays[-1]
        slot.restarting()
        self._owner.emit(notices.ChildRestartScheduled(slot.path, delay, self.keeper.schedule.count(now)))
        if delay == 0:
            await self._restart_now(slot)
        else:
            self.keeper.schedule.put_off(slot, delay, now)
            self._parker.wake()  # under a dynamic supervisor it sleeps, until what was due by then

    async def _restart_now(self, failed: Slot) -> None:
        """Stop the failed child's group in reverse order, then start it in order.

        A child that does not start is tried again, which counts, with everything after it; requests
        are served in between.
        """
        group = [failed]
        if self.flags.strategy != "one_for_one":
            group = list(restart_group(self.flags.strategy, self.roster.in_order(), failed))
            for slot in reversed(group):
                if slot is not failed:
                    await self.keeper.pause(slot)
        for slot in group:
            if self.keeper.stopping.is_set():
                return
            if not self.roster.holds(slot):
                continue
            run = await self.keeper.start(slot)
            if self.keeper.take(slot, run):
                continue
            if run.expected or self.keeper.stopping.is_set():
                await self.keeper.stop(slot)
            else:
                self._retry_start(slot, run)
                return

    def _close_followers(self) -> None:
        """Leave down whoever was to be restarted together with a child that will not be, now it was stopped."""
        if self.flags.strategy == "one_for_one":
            return
        slots = self.roster.in_order()
        leaders = [item.slot for item in self._inbox if isinstance(item, _Retry) and item.is_current]
        leaders += self.keeper.schedule.put_off_now()
        awaited = {slot for leader in leaders for slot in restart_group(self.flags.strategy, slots, leader)}
        for slot in slots:
            if slot.state == "restarting" and slot not in awaited:
                self.keeper.close(slot, slot.reason or ExitReason.SHUTDOWN)

    def _retry_start(self, slot: Slot, run: Incarnation) -> None:
        reason = self.keeper.note_end(slot, run)
        slot.restarting()
        self._inbox.append(_Retry(slot, slot.generation, reason))
        self._parker.wake()

    def _give_up(self, slot: Slot, reason: ExitReason) -> None:
        self.keeper.close(slot, reason)
        self._owner.emit(notices.SupervisorGaveUp(self._owner.path, slot.id, reason))
        self.failure = GaveUp(self._owner.path, slot.id, str(self.flags.intensity))
        self.failure.__cause__ = reason.error
        self._finish()

    def _finish(self) -> None:
        self.body_scope.cancel(f"supervisor {self._owner.path} ends")
        self.request_stop()

    # -- stopping ---------------------------------------------------------------------------------

    async def stop_all(self) -> None:
        """Stop all children, the newest first."""
        for slot in reversed(self.roster.in_order()):
            await self.keeper.stop(slot)


_Item = _Exit | _Retry | _Unstarted | Command[Any]


def _request_error(slot: Slot, run: Incarnation) -> ChildStartError | NameTaken:
    """Why a child that was asked for did not start. That its name is taken is told unchanged, as in OTP."""
    error = _start_error(slot, run)
    cause = error.__cause__
    return NameTaken(cause.key, cause.ref) if isinstance(cause, NameTaken) else error


def _start_error(slot: Slot, run: Incarnation) -> ChildStartError:
    error = ChildStartError(slot.id)
    cause = run.reason.error if run.reason is not None else None
    error.__cause__ = cause or RuntimeError(f"it ended ({run.reason}) without calling task_status.started()")
    return error
