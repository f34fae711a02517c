"""Controls: what others may have the runtime do with an actor, between two of its messages (OTP's `sys`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from omniactors.actors.hooks import ActorHooks


class Controlled(Protocol):
    """The running actor, as a control sees it."""

    @property
    def actor(self) -> ActorHooks:
        """The actor itself."""
        ...

    def suspend(self) -> None:
        """Handle no messages until resumed."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...


class Control:
    """One thing to do; a subclass says what."""

    def perform(self, cell: Controlled) -> object:
        """Do it, and return the answer."""
        raise NotImplementedError


class Suspend(Control):
    """Handle no messages until resumed."""

    def perform(self, cell: Controlled) -> None:
        """Suspend."""
        cell.suspend()


class Resume(Control):
    """Handle messages again."""

    def perform(self, cell: Controlled) -> None:
        """Resume."""
        cell.resume()


class GetState(Control):
    """Tell the actor's state: its snapshot, or the attributes it set."""

    def perform(self, cell: Controlled) -> Any:  # noqa: ANN401 -- whatever the actor's state is
        """The state."""
        state = cell.actor.snapshot()
        if state is not NotImplemented:
            return state
        return {name: value for name, value in vars(cell.actor).items() if not name.startswith("_")}


class ReplaceState(Control):
    """Give the actor another state, through its `restore`."""

    def __init__(self, state: object) -> None:
        self.state = state

    def perform(self, cell: Controlled) -> None:
        """Restore."""
        cell.actor.restore(self.state)
