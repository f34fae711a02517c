"""Snapshot rule: what of an actor's state its next incarnation is offered, and when it is not.

The state after the last handled message is offered, at most twice in a row: if both incarnations
that took it crash before they handled a message, it may be what makes them fail, so the next one
begins anew.
"""

from __future__ import annotations

from typing import Any, Final

MAX_OFFERS: Final = 2


class Snapshots:
    """The last snapshot of one slot."""

    __slots__ = ("_offers", "_state")

    def __init__(self) -> None:
        self._state: tuple[Any] | None = None
        self._offers = 0

    def take(self, state: object) -> None:
        """Keep the state that was reached by handling a message."""
        self._state = (state,)
        self._offers = 0

    def offer(self) -> tuple[Any] | None:
        """The state to restore, in a tuple of one, or None to begin anew."""
        if self._offers == MAX_OFFERS:
            self._state = None
        if self._state is not None:
            self._offers += 1
        return self._state

    def worked(self) -> None:
        """Note that the incarnation that took the state did not fail with it."""
        self._offers = 0

    def clear(self) -> None:
        """Forget it: the actor was stopped for good."""
        self._state = None
        self._offers = 0
