"""The supervisor: what users hold in their hands to start, stop and ask about children."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, overload

import trio

from omniactors.actors.cell import MESSAGE_LOOPS
from omniactors.actors.commands import ActionCommand, StartCommand, StopCommand
from omniactors.actors.control import Control
from omniactors.actors.inspection import ChildInfo, describe_children
from omniactors.actors.keeper import kill
from omniactors.actors.notices import TreeReport
from omniactors.actors.registry import Names, Registry
from omniactors.actors.rules import crash_part
from omniactors.actors.specs import as_spec
from omniactors.actors.telling import Teller
from omniactors.actors.waiting import Place, check_not_inside, current_place, running_child

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Sequence

    from omniactors.actors.actor import Actor
    from omniactors.actors.commands import Command
    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.notices import Notice
    from omniactors.actors.pool import BroadcastPool, Pool
    from omniactors.actors.poolrefs import BroadcastRef, PoolRef
    from omniactors.actors.refs import ActorRef, ChildRef
    from omniactors.actors.slot import Slot
    from omniactors.actors.specs import ChildSpec, Flags
    from omniactors.actors.trees import Subtree

M = TypeVar("M")


class ChildCounts(NamedTuple):
    """What `count_children` tells: specs there are, children alive, and specs by kind."""

    specs: int
    active: int
    supervisors: int
    workers: int


class Supervisor:
    """Runs children and keeps them running. Made by `open_supervisor`, `run_supervisor` or `subtree`.

    Requests are served one after the other, in the order they came; questions are answered at
    once. All methods belong to the trio run of the supervisor; those that change something or wait raise
    RuntimeError in another thread.
    """

    control_type: ClassVar[type[Control]] = Control

    def __init__(
        self,
        flags: Flags,
        specs: Sequence[ChildSpec],
        *,
        path: str,
        emit: Callable[[Notice], None] | None = None,
        registry: Registry | None = None,
    ) -> None:
        self.flags = flags
        self.place = Place(path)
        """Where it stands in the wait-for graph."""
        self._own_names = Names(path)
        self.registry = registry or Registry(self._own_names)
        """Finds the actors of the whole tree by name: the parent's, when there is one."""
        self._specs = list(specs)
        # The whole tree has one: a notice does not go up through a thousand levels.
        self.emit: Callable[[Notice], None] = emit if isinstance(emit, Teller) else Teller(emit)
        """Hands a notice to whoever watches the tree, or to the log when nobody does."""
        self.is_root = self.emit is not emit
        """Whether there is no supervisor above it."""
        self._control = self.control_type(self, flags, self._specs)
        self._body: trio.lowlevel.Task | None = None
        """The task that runs the block."""

    @property
    def path(self) -> str:
        """The names from the root supervisor down to this one, joined by '/'."""
        return self.place.path

    @property
    def failure(self) -> Exception | None:
        """What ended the supervisor: a ChildStartError or a GaveUp."""
        return self._control.failure

    # -- life -----------------------------------------------------------------------------------

    @asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def running(self) -> AsyncIterator[Supervisor]:
        """Run for the length of the block; see `open_supervisor`. One supervisor runs once at a time."""
        control = self._next_control()
        self._own_names.open()
        escaped: BaseException | None = None
        body_error: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                control.open(nursery)
                try:
                    with self._waiting():
                        await control.ready.wait()
                    if not control.has_start_failed:
                        self._body = trio.lowlevel.current_task()
                        with control.body_scope:
                            yield self
                except BaseException as error:
                    body_error = crash_part(error)
                    if body_error is None:  # a cancellation goes its own way
                        raise
                finally:
                    await self._leave(control)
                    nursery.cancel_scope.cancel("the supervisor has ended")
        except BaseException as error:  # noqa: BLE001 -- raised below, when it is known what else there is to raise
            escaped = error
        self._own_names.close()
        self._body = None
        if self.is_root and isinstance(self.emit, Teller):
            self.emit.flush()
        outcome = _outcome(escaped, control.failure, body_error)
        if outcome is not None:
            raise outcome

    def _next_control(self) -> Control:
        if self._control.ended.is_set():
            self._control = self.control_type(self, self.flags, self._specs)
        elif self._control.is_open:
            raise RuntimeError(f"supervisor {self.path!r} runs already")
        host = running_child.get()
        self.place.parent = host.place if host is not None else None
        return self._control

    async def _leave(self, control: Control) -> None:
        """Have the children stopped, and wait for it; never longer than `stop_deadline` and what cannot be killed."""
        control.leave_body()
        with trio.CancelScope(shield=True), self._waiting():
            try:
                with trio.move_on_after(self.flags.stop_deadline):
                    await control.ended.wait()
            finally:
                if not control.ended.is_set():  # it took too long, or this is a second Ctrl-C
                    control.stop_now()
            await control.ended.wait()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """While this lasts, whoever waits for the current child waits for this supervisor."""
        host = current_place()
        if host is None:
            yield
            return
        host.hold(self.place)
        try:
            yield
        finally:
            host.go_on()

    def check_thread(self) -> None:
        """Raise RuntimeError in any thread but that of the supervisor's run."""
        self._control.check_thread()

    def request_stop(self) -> None:
        """Ask the supervisor to stop its children in order and end; idempotent, returns at once."""
        self.check_thread()
        self._control.request_stop()

    def stop_now(self) -> None:
        """Ask the supervisor to end without grace: everything left is cancelled at once."""
        self.check_thread()
        self._control.stop_now()

    def killed_with_it(self) -> list[Incarnation]:
        """As `stop_now`, but what it runs is still to be killed, by whoever asks; nests without recursion."""
        return self._control.killed_with_it()

    async def wait_stopping(self) -> None:
        """Wait until the supervisor is about to end, whatever the reason; cancellable."""
        self.check_thread()
        await self._control.keeper.stopping.wait()

    async def wait_ended(self) -> None:
        """Wait until every child has ended; cancellable."""
        self.check_thread()
        await self._control.ended.wait()

    async def wait_children(self) -> None:
        """Wait until no child is alive or about to be restarted; cancellable.

        Instead of leaving the block, which stops the children.
        """
        self.check_thread()
        await self._control.roster.wait_idle()

    # -- questions ------------------------------------------------------------------------------

    def child(self, child_id: Hashable) -> ChildRef:
        """The reference of a child; raises ChildNotFound."""
        return self._control.roster.get(child_id).ref

    def child_spec(self, child_id: Hashable) -> ChildSpec:
        """The spec of a child, defaults filled in; raises ChildNotFound."""
        return self._control.roster.get(child_id).spec

    def which_children(self) -> list[ChildRef]:
        """All children, alive or not, newest first."""
        return [slot.ref for slot in reversed(self._control.roster.in_order())]

    def count_children(self) -> ChildCounts:
        """How many children there are, and how many are alive."""
        slots = self._control.roster.in_order()
        kinds = Counter(slot.child.kind for slot in slots)
        active = sum(slot.state in ("running", "stopping") for slot in slots)
        return ChildCounts(len(slots), active, kinds["supervisor"], kinds["worker"])

    def tree(self) -> ChildInfo:
        """What the whole tree is doing at this moment: statuses, mailboxes, messages in hand, waits, stacks, exits.

        A frozen value that prints as a tree; `ChildRef.inspect` gives one child's part of it. Costs
        time in proportion to the children.
        """
        control = self._control
        strategy, limit, restarts = self.limits()
        return ChildInfo(
            path=self.path,
            kind="supervisor",
            status="running" if control.is_open and not control.ended.is_set() else "stopped",
            incarnation=1,
            strategy=strategy,
            limit=limit,
            restarts=restarts,
            children=describe_children(self.slots(), MESSAGE_LOOPS),
        )

    def limits(self) -> tuple[str, str, int]:
        """For inspection: the strategy, how many restarts are allowed, and how many there are in the window now."""
        restarts = self._control.keeper.schedule.count(trio.current_time())
        return self.flags.strategy, str(self.flags.intensity), restarts

    def slots(self) -> list[Slot]:
        """For inspection: the children's records, in start order."""
        return self._control.roster.in_order()

    def report(self) -> None:
        """Give the tree to whoever watches it, as a `TreeReport`."""
        self.emit(TreeReport(self.path, self.tree()))

    def inspect_slot(self, slot: Slot) -> ChildInfo:
        """As `ChildRef.inspect`, by slot."""
        return describe_children([slot], MESSAGE_LOOPS)[0]

    def places(self) -> list[Place]:
        """Where the children stand in the wait-for graph, in start order."""
        return [slot.place for slot in self._control.roster.in_order()]

    def __repr__(self) -> str:
        states = Counter(slot.state for slot in self._control.roster.in_order())
        children = ", ".join(f"{count} {state}" for state, count in states.items()) or "no children"
        return f"<{type(self).__name__} {self.path} {self.flags.strategy} [{children}], limit {self.flags.intensity}>"

    # -- requests -------------------------------------------------------------------------------

    @overload
    async def start_child(self, what: type[Actor[M]], *args: Any) -> ActorRef[M]: ...

    @overload
    async def start_child(self, what: BroadcastPool[M]) -> BroadcastRef[M]: ...

    @overload
    async def start_child(self, what: Pool[M]) -> PoolRef[M]: ...

    @overload
    async def start_child(self, what: ChildSpec) -> Any: ...  # noqa: ANN401 -- the spec may be of any kind of child

    @overload
    async def start_child(self, what: Subtree | Supervisor) -> ChildRef: ...

    @overload
    async def start_child(self, what: Callable[..., Awaitable[object]], *args: Any) -> ChildRef: ...

    async def start_child(self, what: Any, *args: Any) -> Any:
        """Start a child behind the others; returns its reference once it is ready.

        `what` is all that `ChildSpec` takes, or a ChildSpec. Raises ChildStartError from what the
        child raised (its spec is then dropped), ChildAlreadyStarted or ChildAlreadyPresent for an
        id in use, SupervisorClosed, and DeadlockError when a child that is being started or stopped
        asks its own supervisor. Cancelled before the child is ready: the start is undone.
        """
        self.check_thread()
        spec = as_spec(what, args)
        self.flags.check_spec(spec)
        control = self._control
        while (undone := control.being_undone(spec.id)) is not None:
            await undone.wait_stopped()
        return await control.request(StartCommand(lambda command: control.begin_new(spec, command)))

    async def stop(self, *, deadline: float = math.inf) -> None:
        """Stop the children in order and end; returns when all have ended. Idempotent, from anywhere in the run.

        After `deadline` seconds whoever is left is cancelled, as by `stop_now`. In the supervisor's own
        block it returns there, and the block goes on without children; called elsewhere, the block is
        cancelled when the children have ended. An actor of this tree, which would wait for its own end,
        gets DeadlockError; a function is cancelled like any child. Cancelled midway, the stop goes on by
        itself, deadline included. A permanent subtree is started again by the supervisor above it:
        stop that child with its reference.
        """
        if math.isnan(deadline) or deadline < 0:
            raise ValueError(f"deadline must be a number of seconds of at least 0, not {deadline!r}")
        self.check_thread()
        check_not_inside(self.place)
        control = self._control
        if control.is_open and not control.ended.is_set():
            control.stop_within(deadline, spares_body=trio.lowlevel.current_task() is self._body)
            await control.ended.wait()
        else:
            await trio.lowlevel.checkpoint()

    async def stop_child(self, child_id: Hashable) -> None:
        """Stop a child by its own shutdown rule; its spec stays, unless it is temporary.

        Idempotent; raises ChildNotFound. Never counts as a restart and never touches siblings.
        """
        await self.stop_slot(self._control.roster.get(child_id))

    async def restart_child(self, child_id: Hashable) -> ChildRef:
        """Start a stopped child again; not counted as a restart.

        Raises ChildNotFound, ChildRunning, ChildRestarting, and ChildStartError (the spec stays).
        """
        self.check_thread()
        control = self._control
        slot = control.roster.get(child_id)
        return await control.request(StartCommand(lambda command: control.begin_again(slot, command)))

    async def delete_child(self, child_id: Hashable) -> None:
        """Forget a stopped child. Raises ChildNotFound, ChildRunning and ChildRestarting."""
        self.check_thread()
        control = self._control
        slot = control.roster.get(child_id)
        command: Command[None] = ActionCommand(lambda _command: control.delete(slot))
        await control.request(command)

    async def stop_slot(self, slot: Slot) -> None:
        """As `stop_child`, by slot: what `ChildRef.stop` calls."""
        self.check_thread()
        check_not_inside(slot.place)
        if slot.state == "stopped" and slot.reason is not None:  # not one that is yet to be started with the others
            await trio.lowlevel.checkpoint()
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        control = self._control
        control.keeper.abort_start(slot)
        await control.request(StopCommand(lambda command: control.stop(slot, command)))

    async def stop_slot_now(self, slot: Slot) -> None:
        """Stop without grace: what `ChildRef.stop_now` calls."""
        self.check_thread()
        check_not_inside(slot.place)
        await trio.lowlevel.checkpoint_if_cancelled()
        kill(slot)
        await self.stop_slot(slot)


def _outcome(
    escaped: BaseException | None, failure: Exception | None, body_error: BaseException | None
) -> BaseException | None:
    """The one exception that leaves a supervisor; the others become notes on it.

    What no supervisor may keep (KeyboardInterrupt, SystemExit) goes before why it ended, that
    before an error of the block, and that before a cancellation.
    """
    errors = [error for error in (_lone(crash_part(escaped)), failure, body_error) if error is not None]
    errors.sort(key=lambda error: isinstance(error, Exception))
    if not errors:
        return escaped
    for other in errors[1:]:
        errors[0].add_note(f"beside it: {other!r}")
    return errors[0]


def _lone(error: BaseException | None) -> BaseException | None:
    """The one exception inside nested groups of one; a KeyboardInterrupt goes before all that is beside it.

    Several tasks may end for one Ctrl-C, and who pressed it waits for a KeyboardInterrupt.
    """
    if isinstance(error, BaseExceptionGroup):
        interrupts, others = error.split(KeyboardInterrupt)
        if interrupts is not None:
            interrupt = _first(interrupts)
            if others is not None:
                interrupt.add_note(f"beside it: {others!r}")
            return interrupt
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
