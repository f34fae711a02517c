"""Trees: opening a supervisor as a block, running one in a nursery, nesting one in another."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import trio

from omniactors.actors.refs import ChildRef
from omniactors.actors.rules import AutoShutdown, Intensity, RestartType, Shutdown, Strategy
from omniactors.actors.specs import ChildSource, ChildSpec, Flags, OnCrash, as_spec
from omniactors.actors.supervisor import Supervisor
from omniactors.errors import DuplicateChildId, GaveUp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.mailbox import Mailbox
    from omniactors.actors.notices import Notice
    from omniactors.actors.rules import ExitReason
    from omniactors.actors.slot import Slot
    from omniactors.actors.specs import Child
    from omniactors.backoff import Backoff


@asynccontextmanager
async def open_supervisor(
    *children: Any,
    strategy: Strategy = "one_for_one",
    intensity: Intensity | None = None,
    backoff: Backoff | None = None,
    auto_shutdown: AutoShutdown = "never",
    stop_deadline: float = math.inf,
    name: str = "supervisor",
    emit: Callable[[Notice], None] | None = None,
) -> AsyncIterator[Supervisor]:
    """A supervisor for the length of an `async with` block.

    The `children` (Actor subclasses, async functions, ChildSpecs, subtrees, pools) are started one
    after the other before the block begins; raises ChildStartError when one fails, after the
    earlier ones were stopped. Leaving the block, in whatever way, stops the children in reverse
    order, each within its own grace time, all within `stop_deadline` seconds; an outer
    cancellation waits for that.

    `strategy` says who is restarted with a child that failed: itself ("one_for_one"), everybody
    ("one_for_all"), or itself and those started after it ("rest_for_one"). More restarts than
    `intensity` allows (default: 3 in 5 s, for all children together) end the supervisor: the block
    is cancelled, the children are stopped, and GaveUp is raised from the last crash. `backoff`
    delays restarts (default: none). With `auto_shutdown` "any_significant" or "all_significant" the
    supervisor ends when significant children do. `emit` gets a notice of each start, exit and
    restart; it must neither block nor raise.

    An error in the block comes out as it is, without a group around it. No globals, no signal
    handlers: several trees may live side by side, and nest.
    """
    flags = Flags(strategy, intensity or Intensity(), backoff, auto_shutdown, stop_deadline)
    supervisor = Supervisor(flags, as_specs(children), path=name, emit=emit)
    async with supervisor.running():
        yield supervisor


async def run_supervisor(
    tree: Subtree,
    *,
    emit: Callable[[Notice], None] | None = None,
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a tree until it is cancelled or ends by itself: `sup = await nursery.start(run_supervisor, subtree(...))`.

    Started with the Supervisor, when all children are ready. Raises as `open_supervisor` does.
    """
    supervisor = Supervisor(tree.flags, tree.specs, path=tree.child_id or "supervisor", emit=emit)
    async with supervisor.running():
        task_status.started(supervisor)
        await supervisor.wait_stopping()


class Subtree:
    """A supervisor as a child, described; made by `subtree`."""

    def __init__(self, flags: Flags, specs: Sequence[ChildSpec], name: str | None) -> None:
        self.flags = flags
        self.specs = specs
        self.child_id = name

    def __child_source__(self) -> ChildSource:
        """How to run this as a child."""
        return tree_source(
            self.child_id,
            lambda slot: Supervisor(
                self.flags,
                self.specs,
                path=slot.path,
                emit=slot.supervisor.emit,
                registry=slot.supervisor.registry,
            ),
        )


def subtree(
    *children: Any,
    strategy: Strategy = "one_for_one",
    intensity: Intensity | None = None,
    backoff: Backoff | None = None,
    auto_shutdown: AutoShutdown = "never",
    stop_deadline: float = math.inf,
    name: str | None = None,
) -> Subtree:
    """A supervisor to be a child of another, or to be given to `run_supervisor`.

    The arguments are those of `open_supervisor`; `name` becomes the child's id. As a child it is
    permanent, has no limit on its shutdown, and the `value` of its reference is the Supervisor.
    One that gives up ends with "shutdown", as in OTP: its parent restarts it when it is permanent.
    """
    flags = Flags(strategy, intensity or Intensity(), backoff, auto_shutdown, stop_deadline)
    specs = as_specs(children)
    for spec in specs:
        flags.check_spec(spec)
    return Subtree(flags, specs, name)


def as_specs(children: Sequence[object]) -> list[ChildSpec]:
    """The children as specs; raises DuplicateChildId when two carry the same id."""
    specs = [as_spec(child) for child in children]
    seen = set()
    for spec in specs:
        if spec.id is not None and spec.id in seen:
            raise DuplicateChildId(spec.id)
        seen.add(spec.id)
    return specs


def tree_source(child_id: str | None, make: Callable[[Slot], Supervisor]) -> ChildSource:
    """A supervisor, made by `make` for each incarnation, as something that can be a child."""

    def factory(_args: tuple[Any, ...], mailbox: Mailbox | None, on_crash: OnCrash | None) -> Callable[[], Child]:
        if _args or mailbox is not None or on_crash is not None:
            raise ValueError("a supervisor takes neither arguments nor a mailbox")
        return lambda: TreeChild(make)

    return ChildSource(child_id or "subtree", "permanent", math.inf, factory, child_id)


class TreeChild:
    """A supervisor as a child of another: asked to stop it stops its own children first."""

    kind: Literal["worker", "supervisor"] = "supervisor"
    restart: RestartType = "permanent"

    def __init__(self, make: Callable[[Slot], Supervisor]) -> None:
        self._make = make

    def make_ref(self, slot: Slot) -> ChildRef:
        """A plain reference; its `value` is the Supervisor."""
        return ChildRef(slot)

    async def run(self, slot: Slot, status: Incarnation) -> None:
        """One life of the supervisor."""
        await run_nested(self._make(slot), status, lambda supervisor: supervisor.request_stop())

    def forget_arguments(self) -> None:
        """Nothing to forget: a supervisor restarts its own children."""

    def run_begins(self) -> None:
        """Nothing to prepare: a supervisor has no mailbox."""

    def run_ended(self, reason: ExitReason) -> None:
        """Nothing to keep: a supervisor has no mailbox."""

    def slot_closed(self, reason: ExitReason) -> None:
        """Nobody to tell: a supervisor has no mailbox."""


async def run_nested(supervisor: Supervisor, status: Incarnation, on_stop: Callable[[Supervisor], None]) -> None:
    """Run `supervisor` as a child; giving up is an orderly end towards the parent (OTP's "shutdown")."""
    try:
        async with supervisor.running():
            status.on_stop = lambda: on_stop(supervisor)
            status.on_kill = supervisor.killed_with_it
            status.started(supervisor)
            await supervisor.wait_stopping()
    except GaveUp as error:
        raise Shutdown(str(error)) from error
