"""Control tasks for children that are alike: they stop all at once, under a dynamic supervisor they start so, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from omniactors.actors.control import Control

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.slot import Slot


class PoolControl(Control):
    """Stops its children all at once: none depends on another."""

    async def stop_all(self) -> None:
        """Stop all children; each has its own grace time, so all take as long as the longest."""
        async with trio.open_nursery() as nursery:
            for slot in self.roster.in_order():
                nursery.start_soon(self.keeper.stop, slot)


class ConcurrentControl(PoolControl):
    """Does things to different children at the same time, and forgets those that have ended."""

    def is_free(self) -> bool:
        """A start may begin at once, whatever else is going on."""
        return not self.keeper.stopping.is_set()

    def being_undone(self, child_id: Hashable) -> Slot | None:
        """The child of this id whose start is being undone: its id is about to be free again."""
        slot = self.roster.find(child_id) if child_id is not None else None
        run = slot.run if slot is not None else None
        return slot if run is not None and run.expected and not run.is_started else None

    def wait_for_start(self, run: Incarnation | None) -> None:
        """Wait for none."""

    async def carry_out(self, action: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Do one thing to one child, beside whatever else is going on."""
        self.nursery.start_soon(_shielded, action, *args, name=f"{self._owner.path} (supervisor)")


async def _shielded(action: Callable[..., Awaitable[object]], *args: Any) -> None:
    with trio.CancelScope(shield=True):
        await action(*args)
