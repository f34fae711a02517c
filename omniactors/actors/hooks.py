"""Hooks: what the runtime calls on an actor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from omniactors.actors.rules import ExitReason


class ActorHooks(Protocol):
    """What the loop calls on an actor, apart from its handlers."""

    async def on_start(self) -> None:
        """Before the actor counts as started."""

    async def on_stop(self, reason: ExitReason) -> None:
        """After the last message."""

    def snapshot(self) -> object:
        """The state to offer to the next incarnation."""

    def restore(self, state: Any) -> None:  # noqa: ANN401 -- whatever snapshot() returned
        """Begin with this state."""

    async def __work__(self, item: Any) -> None:  # noqa: ANN401 -- whatever the lane holds
        """One item of the lane."""
