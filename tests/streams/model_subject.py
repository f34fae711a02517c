"""The stores that are held against the model, and how a test makes their time pass and their consumers die."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from omniactors.streams.backend import Backend

BREATH = 0.001
"""Seconds between two operations, so that what is written by one is older than what is written by the next."""


class Subject(Protocol):
    """One store, empty at first, made anew for every example."""

    consumers: int
    """How many may be open at the same time."""

    is_shared: bool
    """Whether its data outlive the backend that wrote them, and other backends see them."""

    has_clock: bool
    """Whether what it writes down as the time is that of `now()`, and not the machine's."""

    is_lazy: bool
    """Whether a group passes over what was replayed for another one only when it fetches."""

    pause: float
    """Seconds for which a group gives nothing after a claim that nobody could be granted."""

    def open(self) -> Backend:
        """Another backend over the store."""
        ...

    def open_keeper(self) -> Backend:
        """A backend that, when it serves, takes over from the dead at once."""
        ...

    def now(self) -> float:
        """The time that the store goes by, in Unix seconds."""
        ...

    def to_wall(self, moment: float) -> float:
        """A moment of `now()`, as the store is to be told it."""
        ...

    async def breathe(self) -> None:
        """Let BREATH pass."""
        ...

    async def step(self, seconds: float) -> None:
        """Let time pass without waiting for it."""
        ...

    async def kill(self, consumer: str) -> None:
        """Make it so that the store takes this consumer for dead."""
        ...

    async def restart(self) -> None:
        """Have the store begin again; no backend is open."""
        ...

    async def leftovers(self) -> list[str]:
        """What is left in the store although everything is settled and everybody gone."""
        ...
