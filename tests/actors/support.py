"""What the tests of actors share: small actors and a log of notices; the cancel at every moment is the kit's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omniactors import (
    Actor,
    ChildExited,
    ChildRestartScheduled,
    ChildStarted,
    ChildStartFailed,
    ChildStopped,
    Request,
    on,
)
from omniactors.testing import cancel_everywhere

if TYPE_CHECKING:
    import trio

__all__ = [
    "HANG",
    "Add",
    "Boom",
    "Counter",
    "Hold",
    "Leave",
    "Notices",
    "Total",
    "cancel_everywhere",
]

HANG = 10_000.0
"""Virtual seconds after which a scenario counts as hanging."""


@dataclass(frozen=True)
class Add:
    """Adds."""

    amount: int = 1


class Total(Request[int]):
    """Asks for the sum."""


class Boom(Request[None]):
    """Makes the actor crash."""


class Leave:
    """Makes the actor end normally."""


@dataclass(frozen=True)
class Hold(Request[None]):
    """Keeps the actor in its handler until `gate` opens."""

    gate: trio.Event
    entered: trio.Event


class Counter(Actor[Add | Total | Boom | Leave | Hold]):
    """Counts, crashes, ends and holds, as it is told."""

    def __init__(self, start: int = 0) -> None:
        self.sum = start

    @on
    async def add(self, message: Add) -> None:
        """Add."""
        self.sum += message.amount

    @on
    async def total(self, _message: Total) -> int:
        """Tell the sum."""
        return self.sum

    @on
    async def boom(self, _message: Boom) -> None:
        """Crash."""
        raise ValueError("boom")

    @on
    async def leave(self, _message: Leave) -> None:
        """End."""
        self.stop()

    @on
    async def hold(self, message: Hold) -> None:
        """Wait."""
        message.entered.set()
        await message.gate.wait()


class Notices:
    """Collects the notices of a tree; `lines` are short: "started a 1", "exited a crash"."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def __call__(self, notice: object) -> None:
        """Take one."""
        self.all.append(notice)

    @property
    def lines(self) -> list[str]:
        """The notices about children's lives."""
        return [line for notice in self.all if (line := _line(notice))]

    def take(self) -> list[str]:
        """The lines so far, which are forgotten."""
        lines = self.lines
        self.all.clear()
        return lines


def _line(notice: object) -> str:
    match notice:
        case ChildStarted(path, incarnation):
            return f"started {_name(path)} {incarnation}"
        case ChildStopped(path, _, reason):
            return f"stopped {_name(path)} {reason.kind}"
        case ChildExited(path, _, reason):
            return f"exited {_name(path)} {reason.kind}"
        case ChildStartFailed(path, reason):
            return f"failed {_name(path)} {reason.kind}"
        case ChildRestartScheduled(path, _, restarts):
            return f"restarting {_name(path)} {restarts}"
    return ""


def _name(path: str) -> str:
    return path.partition("/")[2]
