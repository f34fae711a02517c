"""The keeper: starts one child, ends one child, and notes what became of it.

What follows from that, and for whom, is the control task's matter.
"""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

import trio

from omniactors.actors import notices
from omniactors.actors.rules import ExitReason, should_restart
from omniactors.actors.schedule import RestartSchedule
from omniactors.actors.stopping import stop_run
from omniactors.actors.waiting import RunningChild, running_child

if TYPE_CHECKING:
    from collections.abc import Callable

    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.roster import Roster
    from omniactors.actors.slot import Slot, SlotOwner
    from omniactors.actors.specs import Flags


class Keeper:
    """The children's tasks, for one life of one supervisor.

    `on_exit` is called when a child that was ready has ended while nothing stops; `on_interrupt`
    when one lets KeyboardInterrupt or SystemExit out.
    """

    def __init__(
        self,
        owner: SlotOwner,
        flags: Flags,
        roster: Roster,
        *,
        on_exit: Callable[[Slot, Incarnation], None],
        on_interrupt: Callable[[], None],
    ) -> None:
        self.schedule = RestartSchedule(flags)
        self.stopping = trio.Event()
        """From now on nothing is started."""
        self._owner = owner
        self._flags = flags
        self._roster = roster
        self._on_exit = on_exit
        self._on_interrupt = on_interrupt
        self._starting: dict[Incarnation, None] = {}
        self._holding_up: dict[Slot, None] = {}
        self._has_grace = True

    def open(self, nursery: trio.Nursery) -> None:
        """Run children in `nursery`."""
        self._nursery = nursery
        # The first incarnation and the hundredth see the same context variables.
        self._context = contextvars.copy_context()

    # -- starting ---------------------------------------------------------------------------------

    async def start(self, slot: Slot) -> Incarnation:
        """Start one incarnation and wait until it is ready, or has ended before it was."""
        settled = trio.Event()
        run = self.begin(slot, lambda _run: settled.set())
        await settled.wait()
        return run

    def begin(self, slot: Slot, on_settled: Callable[[Incarnation], None]) -> Incarnation:
        """Start one incarnation; `on_settled` is called when it is ready, or has ended before it was.

        The child is a task of the supervisor's nursery from its first step. `nursery.start` would
        keep it in a nursery of its own until it is ready, and strand it there if the starter is
        cancelled at that moment (trio issues 2544 and 2895).
        """
        if slot.state == "stopped":
            self._roster.opened(slot)
        self.schedule.call_off(slot, trio.current_time())
        is_restart = slot.state == "restarting"
        run = slot.begin()
        run.is_restart = is_restart

        def settle() -> None:
            self._release(slot)
            del self._starting[run]
            if run.is_started and not run.expected:
                slot.ready(trio.current_time())
                if slot.incarnation > 1:
                    self._owner.registry.names.run_ready(slot.ref)
                self._owner.emit(notices.ChildStarted(slot.path, slot.incarnation))
            on_settled(run)

        run.on_settled = settle
        self._starting[run] = None
        self._hold_up(slot)
        self._context.run(self._spawn, slot, run)
        return run

    def _free_names(self, slot: Slot, run: Incarnation) -> None:
        """The child has ended, and nobody has been told: names stay only while another incarnation is to come."""
        if self.stopping.is_set() or (run.expected and not run.for_restart):
            comes_back = False
        elif run.reason is None or not run.is_started:
            comes_back = run.is_restart
        else:
            has_room = self.schedule.has_room(trio.current_time())
            comes_back = run.for_restart or (should_restart(slot.spec.restart, run.reason) and has_room)
        if not comes_back:
            self._owner.registry.names.slot_closed(slot.ref)

    def take(self, slot: Slot, run: Incarnation) -> bool:
        """Note a child that is not wanted now; False when its start failed or was undone."""
        if run.ignored:
            self.close(slot, self.note_end(slot, run))
            return True
        return run.is_started and not run.expected

    def abort_start(self, slot: Slot) -> None:
        """Cancel the start of a child that is not ready yet; whoever waits for it finds it ended."""
        run = slot.run
        if run is not None and run in self._starting:
            run.expected = True
            run.abort()

    def _spawn(self, slot: Slot, run: Incarnation) -> None:
        run.nursery = self._nursery
        self._nursery.start_soon(self._run_child, slot, run, name=slot.path)

    async def _run_child(self, slot: Slot, run: Incarnation) -> None:
        running_child.set(RunningChild(slot.place, trio.lowlevel.current_task(), is_actor=slot.is_actor))
        try:
            await run.run(slot.child.run(slot, run), self._free_names, slot)
        except BaseException:
            self._on_interrupt()
            raise
        finally:
            self._report_end(slot, run)
            running_child.set(None)  # lest the task and its context keep each other

    def _report_end(self, slot: Slot, run: Incarnation) -> None:
        self._release(slot)
        if not run.is_started or slot.run is not run:
            return
        if self.stopping.is_set():
            self.close(slot, self.note_end(slot, run))
            return
        self._on_exit(slot, run)
        if not run.expected:  # nobody but the control task brings it back
            slot.place.hold(self._owner.place)

    # -- stopping ---------------------------------------------------------------------------------

    def begin_stopping(self) -> None:
        """Start nothing more; idempotent."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        for run in self._starting:
            run.expected = True
            run.abort()
        # Whoever waits for a child that is down would wait for a start that does not come.
        for slot in self._roster.in_order():
            if slot.state == "restarting":
                self.close(slot, slot.reason or ExitReason.SHUTDOWN)
            elif slot.run is not None and slot.run.reason is not None and slot.run.is_started:
                self.close(slot, self.note_end(slot, slot.run))
            elif slot.run is None and slot.reason is None:
                slot.close(ExitReason.SHUTDOWN)

    def killed_with_it(self) -> list[Incarnation]:
        """Give none any grace from now on; who is to be killed for that."""
        self._has_grace = False
        runs = [slot.run for slot in self._roster.in_order() if slot.run is not None]
        for run in runs:
            run.expected = True
        return runs

    async def stop(self, slot: Slot) -> None:
        """Stop the child for good, call off its restart, keep the spec unless it is temporary."""
        await self._end_run(slot)
        if slot.state != "stopped" and slot.run is None:
            self.close(slot, slot.reason or ExitReason.SHUTDOWN)

    async def pause(self, slot: Slot) -> None:
        """Stop the child because it is to be restarted with its group; what is queued for it stays."""
        if slot.spec.restart == "temporary":
            await self.stop(slot)
            return
        if slot.run is None:
            return
        slot.run.for_restart = True
        await self._end_run(slot)
        if self.stopping.is_set():
            await self.stop(slot)
        else:
            slot.restarting()

    def note_end(self, slot: Slot, run: Incarnation) -> ExitReason:
        """Note and tell that the slot's run has ended; its reason."""
        reason = run.reason or ExitReason.KILLED
        slot.end(reason)
        if run.ignored:
            return reason
        if slot.ready_at is None:
            self._owner.emit(notices.ChildStartFailed(slot.path, reason))
        elif run.by_itself:
            self._owner.emit(notices.ChildExited(slot.path, slot.incarnation, reason))
        else:
            self._owner.emit(notices.ChildStopped(slot.path, slot.incarnation, reason))
        return reason

    def close(self, slot: Slot, reason: ExitReason) -> None:
        """No restart of this child is to come."""
        if slot.state != "stopped":
            self._roster.closed(slot)
        self.schedule.call_off(slot, trio.current_time())
        self._owner.registry.names.slot_closed(slot.ref)
        slot.close(reason)
        if slot.spec.restart == "temporary" or self._flags.independent:
            self._roster.drop(slot)

    async def _end_run(self, slot: Slot) -> None:
        """End the slot's present run, if there is one."""
        run = slot.run
        if run is None:
            return
        slot.state = "stopping"
        self._hold_up(slot)
        await stop_run(slot, run, slot.spec.shutdown if self._has_grace else 0)
        self._release(slot)
        if slot.run is run:
            self.note_end(slot, run)

    def _hold_up(self, slot: Slot) -> None:
        """Whoever waits for the supervisor now waits for this child; independent ones only hold up its end."""
        if self._flags.independent and not self.stopping.is_set():
            return
        self._holding_up[slot] = None
        self._owner.place.hold(slot.place)

    def _release(self, slot: Slot) -> None:
        """The supervisor waits for this child no longer."""
        self._holding_up.pop(slot, None)
        if self._owner.place.waits_for is slot.place:
            self._owner.place.go_on()
            for other in self._holding_up:
                self._owner.place.hold(other.place)
                return


def kill(slot: Slot) -> None:
    """Cancel the child of `slot` for good, without waiting for its end."""
    if slot.run is not None:
        slot.run.expected = True
        slot.run.kill()
