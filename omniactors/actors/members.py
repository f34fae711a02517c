"""The supervisor inside a pool: its actors stop all at once, and may come and go while it runs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, ClassVar

import trio

from omniactors.actors.supervisor import Supervisor
from omniactors.actors.together import PoolControl
from omniactors.actors.waiting import check_not_inside, current_place
from omniactors.errors import ChildRunning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from omniactors.actors.control import Control
    from omniactors.actors.notices import Notice
    from omniactors.actors.registry import Registry
    from omniactors.actors.slot import Slot
    from omniactors.actors.specs import ChildSpec, Flags


class PoolSupervisor(Supervisor):
    """Runs the actors of a pool, whose ids are their numbers."""

    control_type: ClassVar[type[Control]] = PoolControl

    def __init__(
        self,
        flags: Flags,
        specs: Sequence[ChildSpec],
        *,
        path: str,
        emit: Callable[[Notice], None] | None = None,
        registry: Registry | None = None,
    ) -> None:
        super().__init__(flags, specs, path=path, emit=emit, registry=registry)
        self._leaving: dict[Slot, trio.Event] = {}

    @property
    def is_stopping(self) -> bool:
        """Whether it starts nothing more."""
        return self._control.keeper.stopping.is_set()

    def retire(self, number: int, *, keeps_queue: bool) -> None:
        """Begin to stop one actor and to forget it, beside whatever else is going on; see `wait_retired`.

        With `keeps_queue` it ends after the message in hand: what is queued is not its own.
        """
        control = self._control
        slot = control.roster.find(number)
        if slot is None:
            return
        if keeps_queue and slot.run is not None:
            slot.run.for_restart = True
        control.keeper.abort_start(slot)
        self._leaving[slot] = trio.Event()
        control.nursery.start_soon(self._retire, slot, name=f"{slot.path} (leaves)")

    async def _retire(self, slot: Slot) -> None:
        with trio.CancelScope(shield=True):
            await self._control.keeper.stop(slot)
        self._control.roster.drop(slot)
        self._leaving.pop(slot).set()

    async def wait_retired(self) -> None:
        """Wait until all who leave have ended; cancellable, and they leave nevertheless."""
        asker = current_place()
        while self._leaving:
            slot, gone = next(iter(self._leaving.items()))
            if asker is not None:
                asker.hold(slot.place)
            try:
                await gone.wait()
            finally:
                if asker is not None:
                    asker.go_on()

    async def ensure(self, spec: ChildSpec) -> None:
        """Start the actor if it is not there, or was stopped; raises as `start_child`."""
        slot = self._control.roster.find(spec.id)
        if slot is None:
            await self.start_child(spec)
        elif slot.state == "stopped":
            with contextlib.suppress(ChildRunning):  # the pool was starting, and has started it meanwhile
                await self.restart_child(spec.id)

    def check_not_leaving(self) -> None:
        """Raise DeadlockError when the current task is an actor that leaves."""
        for slot in self._leaving:
            check_not_inside(slot.place)

    def check_not_among(self, numbers: Iterable[int]) -> None:
        """Raise DeadlockError when the current task is one of these actors."""
        for number in numbers:
            slot = self._control.roster.find(number)
            if slot is not None:
                check_not_inside(slot.place)
