"""Lanes: what an actor may work from beside its mailbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from omniactors.actors.mailbox import Parker


class Source(Protocol):
    """Where an idle actor waits for work."""

    def add_idle(self, parker: Parker) -> None:
        """Wake this parker when there is something to take."""
        ...

    def discard_idle(self, parker: Parker) -> None:
        """Forget this parker."""
        ...


class Lane(Source, Protocol):
    """A source of work beside the mailbox, shared by as many actors as like to pull from it."""

    def take(self) -> object | None:
        """The next item, or None when there is nothing to do now."""
        ...
