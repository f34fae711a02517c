"""The dynamic supervisor: children that come and go, started and stopped at the same time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Self

from omniactors.actors.rules import Intensity
from omniactors.actors.specs import ChildSource, Flags
from omniactors.actors.supervisor import Supervisor
from omniactors.actors.together import ConcurrentControl
from omniactors.actors.trees import tree_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from omniactors.actors.control import Control
    from omniactors.actors.notices import Notice
    from omniactors.actors.slot import Slot
    from omniactors.backoff import Backoff


class DynamicSupervisor(Supervisor):
    """A supervisor without static children, as Elixir's: one slow start or stop holds up nobody else.

    Use it as a block, `async with DynamicSupervisor() as sup`, or as a child of another supervisor,
    where the object stays the same over its restarts; its children are lost by a restart. Any spec
    may be started, up to `max_children` (TooManyChildren beyond). A child that ended and is not to
    be restarted is forgotten. There are no significant children. The other arguments are those of
    `open_supervisor`.
    """

    control_type: ClassVar[type[Control]] = ConcurrentControl

    def __init__(
        self,
        *,
        max_children: float = math.inf,
        intensity: Intensity | None = None,
        backoff: Backoff | None = None,
        stop_deadline: float = math.inf,
        name: str = "dynamic",
        emit: Callable[[Notice], None] | None = None,
    ) -> None:
        if max_children < 1 or math.isnan(max_children):
            raise ValueError(f"max_children must be at least 1, not {max_children!r}")
        flags = Flags(
            intensity=intensity or Intensity(),
            backoff=backoff,
            stop_deadline=stop_deadline,
            max_children=max_children,
            independent=True,
        )
        super().__init__(flags, [], path=name, emit=emit)
        self.child_id = name
        self._block: AbstractAsyncContextManager[Supervisor] | None = None

    def __child_source__(self) -> ChildSource:
        """How to run this as a child."""
        return tree_source(self.child_id, self._adopted)

    def _adopted(self, slot: Slot) -> Supervisor:
        self.place.path = slot.path
        self.emit, self.is_root = slot.supervisor.emit, False
        self.registry = slot.supervisor.registry
        return self

    async def __aenter__(self) -> Self:
        self._block = self.running()
        await self._block.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        block, self._block = self._block, None
        if block is None:
            raise RuntimeError("this DynamicSupervisor was not entered")
        return await block.__aexit__(kind, error, traceback)
