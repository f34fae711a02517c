"""The dynamic supervisor: children that come and go, started and stopped at the same time."""

from __future__ import annotations

import math
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Self

import trio

from omniactors.actors.rules import Intensity
from omniactors.actors.specs import ChildSource, Flags, as_spec
from omniactors.actors.supervisor import Supervisor
from omniactors.actors.trees import tree_source
from omniactors.errors import TooManyChildren

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from omniactors.actors.notices import Notice
    from omniactors.actors.rules import ExitReason
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

    def __init__(  # noqa: PLR0913 -- the flags of Elixir's DynamicSupervisor, and two of ours
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
        flags = Flags("one_for_one", intensity or Intensity(), backoff, "never", stop_deadline)
        super().__init__(flags, [], path=name, emit=emit)
        self.child_id = name
        self.max_children = max_children
        self._block: AbstractAsyncContextManager[Supervisor] | None = None

    def __child_source__(self) -> ChildSource:
        """How to run this as a child."""
        return tree_source(self.child_id, self._adopted)

    def _adopted(self, slot: Slot) -> Supervisor:
        self.path = slot.path
        self._emit = slot.supervisor.emit
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

    async def start_child(self, what: Any, *args: Any) -> Any:  # noqa: ANN401 -- as Supervisor.start_child
        """As `Supervisor.start_child`, beside other starts; raises TooManyChildren."""
        if len(self._slots) >= self.max_children:
            raise TooManyChildren(int(self.max_children))
        return await super().start_child(as_spec(what, args))

    def _refuse_own_start(self) -> None:
        """A child may start another while it is being started itself: starts do not wait for each other."""

    async def _carry_out(self, action: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Do one thing to one child, beside whatever else is going on."""
        if self._nursery is not None:
            self._nursery.start_soon(_shielded, action, *args, name=f"{self.path} (supervisor)")

    def _close(self, slot: Slot, reason: ExitReason) -> None:
        super()._close(slot, reason)
        self._drop(slot)

    async def _stop_all(self) -> None:
        """Stop everybody at once; each has its own grace time, so all take as long as the longest."""
        async with trio.open_nursery() as nursery:
            for slot in list(self._slots.values()):
                nursery.start_soon(self._stop_and_close, slot, slot.spec.shutdown)


async def _shielded(action: Callable[..., Awaitable[object]], *args: Any) -> None:
    with trio.CancelScope(shield=True):
        await action(*args)
