"""The slot: a child's record under its supervisor, from the arrival of its spec until that is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import trio

from omniactors.actors.incarnation import Incarnation
from omniactors.actors.refs import ActorRef
from omniactors.actors.rules import ExitReason
from omniactors.actors.waiting import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from omniactors.actors.inspection import ChildInfo
    from omniactors.actors.notices import Notice
    from omniactors.actors.refs import ChildRef, Status
    from omniactors.actors.registry import Registry
    from omniactors.actors.specs import ChildSpec


HISTORY = 5
"""Exits of a child that are remembered for inspection."""


class SlotOwner(Protocol):
    """What a slot needs of its supervisor."""

    @property
    def path(self) -> str:
        """The supervisor's own path."""
        ...

    @property
    def place(self) -> Place:
        """The supervisor's place in the wait-for graph."""
        ...

    @property
    def registry(self) -> Registry:
        """The registry of the supervisor's tree."""
        ...

    @property
    def emit(self) -> Callable[[Notice], None]:
        """Tells the world."""
        ...

    def check_thread(self) -> None:
        """Raise RuntimeError in any thread but that of the supervisor's run."""
        ...

    def inspect_slot(self, slot: Slot) -> ChildInfo:
        """What the slot's child is doing."""
        ...

    async def stop_slot(self, slot: Slot) -> None:
        """Stop the slot's child for good, with its grace time."""
        ...

    async def stop_slot_now(self, slot: Slot) -> None:
        """Stop the slot's child for good, without grace."""
        ...


class Slot:
    """One child over all its incarnations. `ChildRef` points here."""

    __slots__ = (
        "_stopped",
        "child",
        "crashes",
        "failures",
        "generation",
        "history",
        "id",
        "incarnation",
        "path",
        "place",
        "ready_at",
        "reason",
        "ref",
        "run",
        "spec",
        "state",
        "supervisor",
    )

    def __init__(self, spec: ChildSpec, child_id: Hashable, supervisor: SlotOwner) -> None:
        self.spec = spec
        self.id = child_id
        self.supervisor = supervisor
        self.path = f"{supervisor.path}/{child_id}"
        self.place = Place(self.path, supervisor.place)
        self.state: Status = "stopped"
        self.incarnation = 0
        self.run: Incarnation | None = None
        self.reason: ExitReason | None = None
        self.generation = 0
        """Goes up with every start and stop, so that a restart that was put off knows it is outdated."""
        self.failures = 0
        """Crashes in a row, for the backoff."""
        self.crashes = 0
        self.history: tuple[tuple[float, int, str], ...] = ()
        """The last exits: when in trio's time, of which incarnation, and why as text, which keeps no frames alive."""
        self.ready_at: float | None = None
        """When this incarnation became ready, in trio's time."""
        self._stopped: trio.Event | None = None
        self.child = spec.child_factory()
        self.ref: ChildRef = self.child.make_ref(self)

    @property
    def value(self) -> Any:  # noqa: ANN401 -- whatever the child handed to started()
        """What the running child gave to `started()`."""
        return self.run.value if self.run is not None else None

    @property
    def is_actor(self) -> bool:
        """Whether the child handles messages in its own task."""
        return isinstance(self.ref, ActorRef) and self.child.kind == "worker"

    def begin(self) -> Incarnation:
        """A new incarnation, about to start."""
        self.generation += 1
        self.incarnation += 1
        self.state = "starting"
        self.ready_at = None
        self.reason = None  # it holds the frames of what crashed
        self.place.begin()
        self.run = Incarnation()
        self.child.run_begins()
        return self.run

    def ready(self, now: float) -> None:
        """The incarnation has reported that it is ready."""
        self.state = "running"
        self.ready_at = now
        if self.spec.restart == "temporary":  # as OTP: it is never started again
            self.spec = self.spec.without_arguments()
            self.child.forget_arguments()

    def end(self, reason: ExitReason) -> None:
        """The incarnation has ended; what follows is not decided yet."""
        self.generation += 1
        self.reason = reason
        if self.run is not None and self.run.is_started:
            # The frames of what crashed lead back to it, by their locals and their callers: a ring, if it led to them.
            self.run.reason = ExitReason(reason.kind)
        self.run = None
        self.crashes += reason.kind == "crash"
        self.history = (*self.history[1 - HISTORY :], (trio.current_time(), self.incarnation, str(reason)))
        self.child.run_ended(reason)

    def restarting(self) -> None:
        """A restart is decided, and is to come."""
        self.generation += 1
        self.state = "restarting"

    def close(self, reason: ExitReason) -> None:
        """No restart is to come: whoever waits for this child is told."""
        self.generation += 1
        self.state = "stopped"
        self.reason = reason
        self.place.end()
        self.child.slot_closed(reason)
        if self._stopped is not None:
            self._stopped.set()
            self._stopped = None

    def inspect(self) -> ChildInfo:
        """As `ChildRef.inspect`."""
        return self.supervisor.inspect_slot(self)

    def call_at_end(self, told: Callable[[ExitReason], None]) -> None:
        """Have `told` called when the present incarnation ends, at once when none is alive."""
        self.supervisor.check_thread()
        if self.run is not None:
            self.run.call_at_end(told)
        else:
            told(self.reason or ExitReason.SHUTDOWN)

    def forget_at_end(self, told: Callable[[ExitReason], None]) -> None:
        """Take `call_at_end(told)` back."""
        if self.run is not None:
            self.run.forget_at_end(told)

    async def wait_stopped(self) -> ExitReason:
        """Wait until no incarnation is alive and none is to come; cancellable."""
        while self.state != "stopped" or self.reason is None:
            self.supervisor.check_thread()
            if self._stopped is None:
                self._stopped = trio.Event()
            await self._stopped.wait()
        await trio.lowlevel.checkpoint()
        return self.reason

    async def stop(self) -> None:
        """As `ChildRef.stop`."""
        await self.supervisor.stop_slot(self)

    async def stop_now(self) -> None:
        """As `ChildRef.stop_now`."""
        await self.supervisor.stop_slot_now(self)
