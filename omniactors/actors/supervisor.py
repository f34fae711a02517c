"""The supervisor: starts its children in order, restarts them by the rules, stops them in reverse order.

Three kinds of task share one nursery. Each child runs under a shield of its own. The control task,
shielded too, does one thing after the other: starts, stops, restarts, requests. The sentinel alone
feels an outer cancellation, and only asks the control task to stop; so whatever ends the nursery,
the children end in order.
"""

from __future__ import annotations

import contextvars
import heapq
import itertools
import math
import random
from collections import Counter, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import trio

from omniactors.actors import notices
from omniactors.actors.commands import Command
from omniactors.actors.mailbox import Parker
from omniactors.actors.refs import ActorRef, ChildRef
from omniactors.actors.rules import ExitReason, RestartWindow, restart_group, should_restart
from omniactors.actors.slot import Slot
from omniactors.actors.specs import ChildSpec, Flags, as_spec
from omniactors.actors.stopping import stop_run
from omniactors.actors.waiting import Place, RunningChild, check_not_inside, current_place, running_child
from omniactors.errors import (
    ChildAlreadyPresent,
    ChildAlreadyStarted,
    ChildNotFound,
    ChildRestarting,
    ChildRunning,
    ChildStartError,
    DeadlockError,
    DuplicateChildId,
    GaveUp,
    SupervisorClosed,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Sequence

    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.notices import Notice

T = TypeVar("T")


class ChildCounts(NamedTuple):
    """What `count_children` tells: specs there are, children alive, and specs by kind."""

    specs: int
    active: int
    supervisors: int
    workers: int


class _Exit(NamedTuple):
    slot: Slot
    run: Incarnation


class _Retry(NamedTuple):
    slot: Slot
    generation: int
    reason: ExitReason


class Supervisor:
    """Runs children and keeps them running. Made by `open_supervisor`, `run_supervisor` or `subtree`.

    Requests are served one after the other, in the order they came; questions are answered at
    once. All methods belong to the trio run of the supervisor.
    """

    def __init__(
        self, flags: Flags, specs: Sequence[ChildSpec], *, path: str, emit: Callable[[Notice], None] | None = None
    ) -> None:
        self.flags = flags
        self.path = path
        self.place = Place(path)
        self._specs = list(specs)
        self._emit = emit
        self._context = contextvars.copy_context()
        self._reset()

    def _reset(self) -> None:
        self._slots: dict[Hashable, Slot] = {}
        self._names: Counter[str] = Counter()
        self._inbox: deque[_Exit | _Retry | Command[Any]] = deque()
        self._parker = Parker()
        self._window = RestartWindow(self.flags.intensity)
        self._timers: list[tuple[float, int, Slot, int]] = []
        self._timer_numbers = itertools.count()
        self._backing_off = 0
        self._backoff_since = 0.0
        self._backoff_total = 0.0
        self._starting: dict[Incarnation, None] = {}
        self._live = 0
        self._significant_live = 0
        self._idle = trio.Event()
        self._stopping = trio.Event()
        self._body_left = trio.Event()
        self._ready = trio.Event()
        self._ended = trio.Event()
        self._body_scope = trio.CancelScope()
        self._no_grace = False
        self.failure: Exception | None = None
        """What ended the supervisor: a ChildStartError or a GaveUp."""
        self._nursery: trio.Nursery | None = None
        for spec in self._specs:
            self.flags.check_spec(spec)
            self._add_slot(spec)

    # -- life -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Supervisor]:
        """Run for the length of the block; see `open_supervisor`. One supervisor runs once at a time."""
        if self._ended.is_set():
            self._reset()
        body_error: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._feel_cancellation, name=f"{self.path} (sentinel)")
                nursery.start_soon(self._control, name=f"{self.path} (supervisor)")
                try:
                    await self._ready.wait()
                    if self.failure is None:
                        with self._body_scope:
                            yield self
                except Exception as error:  # noqa: BLE001 -- kept whole, and raised below without a group around it
                    body_error = error
                finally:
                    self._body_left.set()
                    self.request_stop()
                    with trio.CancelScope(shield=True):
                        await self._ended.wait()
                    nursery.cancel_scope.cancel("the supervisor has ended")
        except BaseExceptionGroup as group:
            lone = _lone(group)
            if lone is None:
                raise
            raise lone from lone.__cause__
        if self.failure is not None:
            raise self.failure
        if body_error is not None:
            raise body_error

    async def _feel_cancellation(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.request_stop()

    async def _control(self) -> None:
        with trio.CancelScope(shield=True):
            try:
                await self._start_all()
                self._ready.set()
                while not self._stopping.is_set():
                    await self._serve_one()
            finally:
                self._stopping.set()
                self._ready.set()
                await self._shut_down()

    def request_stop(self) -> None:
        """Ask the supervisor to stop its children in order and end; idempotent, returns at once."""
        if not self._stopping.is_set():
            self._stopping.set()
            for run in self._starting:
                run.kill()
            self._parker.wake()

    def stop_now(self) -> None:
        """Ask the supervisor to end without grace: everything left is cancelled at once."""
        self._no_grace = True
        self.request_stop()
        for slot in self._slots.values():
            if slot.run is not None:
                slot.run.expected = True
                slot.run.kill()

    async def wait_stopping(self) -> None:
        """Wait until the supervisor is about to end, whatever the reason; cancellable."""
        await self._stopping.wait()

    async def wait_ended(self) -> None:
        """Wait until every child has ended; cancellable."""
        await self._ended.wait()

    async def wait_children(self) -> None:
        """Wait until no child is alive or about to be restarted; cancellable.

        Instead of leaving the block, which stops the children.
        """
        while self._live:
            if self._idle.is_set():
                self._idle = trio.Event()
            await self._idle.wait()
        await trio.lowlevel.checkpoint()

    def emit(self, notice: Notice) -> None:
        """Hand a notice to whoever watches the tree."""
        if self._emit is not None:
            self._emit(notice)

    # -- questions ------------------------------------------------------------------------------

    def child(self, child_id: Hashable) -> ChildRef:
        """The reference of a child; raises ChildNotFound."""
        return self._slot(child_id).ref

    def child_spec(self, child_id: Hashable) -> ChildSpec:
        """The spec of a child, defaults filled in; raises ChildNotFound."""
        return self._slot(child_id).spec

    def which_children(self) -> list[ChildRef]:
        """All children, alive or not, newest first."""
        return [slot.ref for slot in reversed(self._slots.values())]

    def count_children(self) -> ChildCounts:
        """How many children there are, and how many are alive."""
        kinds = Counter(slot.child.kind for slot in self._slots.values())
        active = sum(slot.state in ("running", "stopping") for slot in self._slots.values())
        return ChildCounts(len(self._slots), active, kinds["supervisor"], kinds["worker"])

    def __repr__(self) -> str:
        states = Counter(slot.state for slot in self._slots.values())
        children = ", ".join(f"{count} {state}" for state, count in states.items()) or "no children"
        return f"<{type(self).__name__} {self.path} {self.flags.strategy} [{children}], limit {self.flags.intensity}>"

    # -- requests -------------------------------------------------------------------------------

    async def start_child(self, what: Any, *args: Any) -> Any:  # noqa: ANN401 -- see the overloads in the type stubs of specs
        """Start a child behind the others; returns its reference once it is ready.

        `what` is all that `ChildSpec` takes, or a ChildSpec. Raises ChildStartError from what the
        child raised (its spec is then dropped), ChildAlreadyStarted or ChildAlreadyPresent for an
        id in use, SupervisorClosed, and DeadlockError when a child that is being started asks its
        own supervisor. Cancelled before the child is ready: the start is undone.
        """
        spec = as_spec(what, args)
        self.flags.check_spec(spec)
        self._refuse_own_start()
        return await self._request(lambda command: self._start_new(spec, command))

    async def stop_child(self, child_id: Hashable) -> None:
        """Stop a child by its own shutdown rule; its spec stays, unless it is temporary.

        Idempotent; raises ChildNotFound. Never counts as a restart and never touches siblings.
        """
        await self.stop_slot(self._slot(child_id))

    async def restart_child(self, child_id: Hashable) -> ChildRef:
        """Start a stopped child again; not counted as a restart.

        Raises ChildNotFound, ChildRunning, ChildRestarting, and ChildStartError (the spec stays).
        """
        slot = self._slot(child_id)
        self._refuse_own_start()
        return await self._request(lambda command: self._start_again(slot, command))

    async def delete_child(self, child_id: Hashable) -> None:
        """Forget a stopped child. Raises ChildNotFound, ChildRunning and ChildRestarting."""
        slot = self._slot(child_id)

        async def delete(_command: Command[None]) -> None:
            self._check_stopped(slot)
            self._drop(slot)

        await self._request(delete)

    async def stop_slot(self, slot: Slot) -> None:
        """As `stop_child`, by slot: what `ChildRef.stop` calls."""
        check_not_inside(slot.place)
        if self._is_gone(slot):
            await trio.lowlevel.checkpoint()
            return
        if self._stopping.is_set():
            await slot.wait_stopped()
            return
        self._abort_start(slot)

        async def stop(_command: Command[None]) -> None:
            await self._stop_and_close(slot, slot.spec.shutdown)

        await self._request(stop)

    async def stop_slot_now(self, slot: Slot) -> None:
        """Stop without grace: what `ChildRef.stop_now` calls."""
        check_not_inside(slot.place)
        if slot.run is not None and not self._is_gone(slot):
            slot.run.expected = True
            slot.run.kill()
        await self.stop_slot(slot)

    def _is_gone(self, slot: Slot) -> bool:
        """Whether nothing is left to stop, now or ever."""
        return slot.run is None and (self._slots.get(slot.id) is not slot or self._ended.is_set())

    async def _request(self, action: Callable[[Command[T]], Coroutine[Any, Any, T]]) -> T:
        if self._stopping.is_set() or self._nursery is None:
            raise SupervisorClosed(self.path)
        command = Command(action)
        self._inbox.append(command)
        self._parker.wake()
        return await command.wait()

    def _refuse_own_start(self) -> None:
        """A child that is being started holds up the control task, which could never serve it."""
        mine = current_place()
        if mine is None:
            return
        for slot in self._slots.values() if self._starting else ():
            if slot.run in self._starting and mine.is_inside(slot.place):
                raise DeadlockError((mine.path, self.path, mine.path))

    # -- the control task -----------------------------------------------------------------------

    async def _start_all(self) -> None:
        for slot in list(self._slots.values()):
            if self._stopping.is_set():
                return
            run = await self._start(slot)
            if run.is_started or run.ignored:
                self._after_start(slot, run)
                continue
            if run.expected:
                continue
            if not self._stopping.is_set():
                self.failure = self._start_error(slot, run)
                self._stopping.set()
            return

    async def _serve_one(self) -> None:
        now = trio.current_time()
        if self._timers and self._timers[0][0] <= now:
            _, _, slot, generation = heapq.heappop(self._timers)
            self._backoff_over(now)
            if slot.generation == generation:
                await self._carry_out(self._restart_now, slot)
        elif self._inbox:
            await self._handle(self._inbox.popleft())
        else:
            with trio.move_on_at(self._timers[0][0] if self._timers else math.inf):
                await self._parker.park()

    async def _handle(self, item: _Exit | _Retry | Command[Any]) -> None:
        if isinstance(item, Command):
            await self._carry_out(item.perform)
        elif isinstance(item, _Exit):
            if item.slot.run is item.run:
                await self._carry_out(self._child_exited, item.slot, item.run)
        elif item.slot.generation == item.generation:
            await self._carry_out(self._restart, item.slot, item.reason)

    async def _carry_out(self, action: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Do one thing to the children; the next waits for it."""
        await action(*args)

    async def _child_exited(self, slot: Slot, run: Incarnation) -> None:
        """A child ended by itself."""
        reason = self._ended_run(slot, run)
        self.emit(notices.ChildExited(slot.path, slot.incarnation, reason))
        if should_restart(slot.spec.restart, reason):
            await self._restart(slot, reason)
            return
        self._close(slot, reason)
        if slot.spec.significant and self._ends_with(slot):
            self._finish()

    def _ends_with(self, _slot: Slot) -> bool:
        """Whether the end of this significant child ends the supervisor."""
        rule = self.flags.auto_shutdown
        return rule == "any_significant" or (rule == "all_significant" and self._significant_live == 0)

    async def _restart(self, slot: Slot, reason: ExitReason) -> None:
        """Restart a child whose end is not its last, at once or after its backoff."""
        now = trio.current_time()
        counted = self._backoff_clock(now)
        if not self._window.allow(counted):
            self._give_up(slot, reason)
            return
        delay = self._next_delay(slot, now)
        slot.restarting()
        self.emit(notices.ChildRestartScheduled(slot.path, delay, self._window.count(counted)))
        if delay == 0:
            await self._restart_now(slot)
            return
        if not self._backing_off:
            self._backoff_since = now
        self._backing_off += 1
        heapq.heappush(self._timers, (now + delay, next(self._timer_numbers), slot, slot.generation))

    async def _restart_now(self, failed: Slot) -> None:
        """Stop the failed child's group in reverse order, then start it in order.

        A child that does not start is tried again, which counts, with everything after it; requests
        are served in between.
        """
        if self.flags.strategy == "one_for_one":
            group: Sequence[Slot] = (failed,)
        else:
            group = restart_group(self.flags.strategy, list(self._slots.values()), failed)
            for slot in reversed(group):
                if slot is not failed:
                    await self._stop_and_close(slot, slot.spec.shutdown)
        for slot in group:
            if self._stopping.is_set():
                return
            if self._slots.get(slot.id) is not slot:
                continue
            run = await self._start(slot)
            if not run.is_started and not run.ignored:
                if not self._stopping.is_set() and not run.expected:
                    self._retry_start(slot, run)
                return
            self._after_start(slot, run)

    def _retry_start(self, slot: Slot, run: Incarnation) -> None:
        reason = self._ended_run(slot, run)
        self.emit(notices.ChildStartFailed(slot.path, reason))
        slot.restarting()
        self._inbox.append(_Retry(slot, slot.generation, reason))

    def _give_up(self, slot: Slot, reason: ExitReason) -> None:
        self._close(slot, reason)
        self.emit(notices.SupervisorGaveUp(self.path, slot.id, reason))
        self.failure = GaveUp(self.path, slot.id, str(self.flags.intensity))
        self.failure.__cause__ = reason.error
        self._finish()

    def _finish(self) -> None:
        self._stopping.set()
        self._body_scope.cancel(f"supervisor {self.path} ends")

    # -- backoff --------------------------------------------------------------------------------

    def _next_delay(self, slot: Slot, now: float) -> float:
        backoff = slot.spec.backoff or self.flags.backoff
        if backoff is None:
            return 0.0
        if slot.started_at and now - slot.started_at >= backoff.reset_after:
            slot.failures = 0
        slot.failures += 1
        return backoff.delay(slot.failures, random.random())  # noqa: S311 -- jitter, not a secret

    def _backoff_clock(self, now: float) -> float:
        """Time without the stretches in which a child waited for its backoff.

        The restart window uses it: otherwise a backoff longer than the period would let a child
        that always fails go on for ever.
        """
        pending = now - self._backoff_since if self._backing_off else 0.0
        return now - self._backoff_total - pending

    def _backoff_over(self, now: float) -> None:
        self._backing_off -= 1
        if not self._backing_off:
            self._backoff_total += now - self._backoff_since

    # -- starting and stopping one child ----------------------------------------------------------

    async def _start(self, slot: Slot) -> Incarnation:
        """Start one incarnation and wait until it is ready, or has ended before it was.

        The child is a task of the supervisor's nursery from its first step. `nursery.start` would
        keep it in a nursery of its own until it is ready, and strand it there if the starter is
        cancelled at that moment (trio issues 2544 and 2895).
        """
        if slot.state == "stopped":
            self._live += 1
            self._significant_live += slot.spec.significant
        run = slot.begin()
        self._starting[run] = None
        if self._nursery is None:
            raise SupervisorClosed(self.path)
        self._context.run(self._spawn, self._nursery, slot, run)
        if self._stopping.is_set():
            run.kill()
        await run.settled.wait()
        self._starting.pop(run, None)
        return run

    def _spawn(self, nursery: trio.Nursery, slot: Slot, run: Incarnation) -> None:
        nursery.start_soon(self._run_child, slot, run, name=slot.path)

    async def _run_child(self, slot: Slot, run: Incarnation) -> None:
        is_actor = isinstance(slot.ref, ActorRef) and slot.child.kind == "worker"
        running_child.set(RunningChild(slot.place, trio.lowlevel.current_task(), is_actor=is_actor))
        try:
            await run.run(lambda status: slot.child.run(slot, status))
        finally:
            if run.is_started:
                self._inbox.append(_Exit(slot, run))
                self._parker.wake()

    def _after_start(self, slot: Slot, run: Incarnation) -> None:
        """Note a child that is ready, or one that is not wanted now."""
        if run.ignored:
            self._close(slot, self._ended_run(slot, run))
        else:
            slot.ready(trio.current_time())
            self.emit(notices.ChildStarted(slot.path, slot.incarnation))

    async def _start_new(self, spec: ChildSpec, command: Command[Any]) -> ChildRef:
        known = self._slots.get(spec.id) if spec.id is not None else None
        if known is not None:
            if known.run is not None:
                raise ChildAlreadyStarted(spec.id, known.ref)
            raise ChildAlreadyPresent(spec.id)
        slot = self._add_slot(spec)
        return await self._start_for(slot, command, drop=True)

    async def _start_again(self, slot: Slot, command: Command[ChildRef]) -> ChildRef:
        self._check_stopped(slot)
        return await self._start_for(slot, command, drop=False)

    async def _start_for(self, slot: Slot, command: Command[Any], *, drop: bool) -> ChildRef:
        command.on_abandon = lambda: self._abort_start(slot)
        run = await self._start(slot)
        command.on_abandon = None
        if run.is_started and not run.expected:
            self._after_start(slot, run)
            return slot.ref
        if run.ignored:
            self._after_start(slot, run)
            return slot.ref
        if run.reason is None:
            await self._stop_and_close(slot, 0)
        error = self._start_error(slot, run)
        if drop:
            self._drop(slot)
        raise error

    def _abort_start(self, slot: Slot) -> None:
        """Undo a start that nobody wants any more; the control task finds it ended."""
        run = slot.run
        if run is not None and run in self._starting:
            run.expected = True
            run.kill()

    def _start_error(self, slot: Slot, run: Incarnation) -> Exception:
        """The error for a start that failed; closes the slot."""
        if slot.run is run:
            reason = self._ended_run(slot, run)
            self.emit(notices.ChildStartFailed(slot.path, reason))
            self._close(slot, reason)
        error = ChildStartError(slot.id)
        cause = run.reason.error if run.reason is not None else None
        error.__cause__ = cause or RuntimeError(f"it ended ({run.reason}) without calling task_status.started()")
        return error

    async def _stop_and_close(self, slot: Slot, grace: float) -> None:
        """Stop the child, cancel its pending restart, keep the spec unless it is temporary."""
        run = slot.run
        if run is not None:
            died_alone = run.reason is not None and not run.expected
            slot.state = "stopping"
            await stop_run(slot, run, 0 if self._no_grace else grace)
            if slot.run is not run:
                return
            reason = self._ended_run(slot, run)
            if died_alone:
                self.emit(notices.ChildExited(slot.path, slot.incarnation, reason))
            else:
                self.emit(notices.ChildStopped(slot.path, slot.incarnation, reason))
            self._close(slot, reason)
        elif slot.state != "stopped":
            self._close(slot, slot.reason or ExitReason.SHUTDOWN)

    def _ended_run(self, slot: Slot, run: Incarnation) -> ExitReason:
        """Note that the slot's run has ended; its reason."""
        reason = run.reason or ExitReason.KILLED
        slot.end(reason)
        return reason

    def _close(self, slot: Slot, reason: ExitReason) -> None:
        """No restart of this child is to come."""
        if slot.state != "stopped":
            self._live -= 1
            self._significant_live -= slot.spec.significant
        slot.close(reason)
        if slot.spec.restart == "temporary":
            self._drop(slot)
        if not self._live:
            self._idle.set()

    async def _shut_down(self) -> None:
        """Stop everything in reverse order, within `stop_deadline`."""
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Command):
                item.refuse(SupervisorClosed(self.path))
        self._body_scope.cancel(f"supervisor {self.path} ends")
        await self._body_left.wait()
        with trio.move_on_after(self.flags.stop_deadline) as patience:
            await self._stop_all()
        if patience.cancelled_caught:
            self.stop_now()
            await self._stop_all()
        self._ended.set()

    async def _stop_all(self) -> None:
        for slot in reversed(list(self._slots.values())):
            await self._stop_and_close(slot, slot.spec.shutdown)

    # -- slots ----------------------------------------------------------------------------------

    def _slot(self, child_id: Hashable) -> Slot:
        try:
            return self._slots[child_id]
        except (KeyError, TypeError):
            raise ChildNotFound(child_id) from None

    def _add_slot(self, spec: ChildSpec) -> Slot:
        child_id = spec.id
        while child_id is None or (spec.id is None and child_id in self._slots):
            self._names[spec.name] += 1
            child_id = f"{spec.name}-{self._names[spec.name]}"
        if child_id in self._slots:
            raise DuplicateChildId(child_id)
        slot = self._slots[child_id] = Slot(spec, child_id, self)
        return slot

    def _drop(self, slot: Slot) -> None:
        if self._slots.get(slot.id) is slot:
            del self._slots[slot.id]

    def _check_stopped(self, slot: Slot) -> None:
        if self._slots.get(slot.id) is not slot:
            raise ChildNotFound(slot.id)
        if slot.state == "restarting":
            raise ChildRestarting(slot.id)
        if slot.run is not None:
            raise ChildRunning(slot.id)


def _lone(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The one exception in `group` beside cancellations, if there is just one."""
    rest = group.split(trio.Cancelled)[1]
    while isinstance(rest, BaseExceptionGroup) and len(rest.exceptions) == 1:
        rest = rest.exceptions[0]
    return None if isinstance(rest, BaseExceptionGroup) else rest

