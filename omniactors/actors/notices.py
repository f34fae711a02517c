"""Notices: what a supervision tree tells whoever wants to know. Frozen values, given to `emit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from omniactors.actors.inspection import ChildInfo
    from omniactors.actors.rules import ExitReason


@dataclass(frozen=True)
class ChildStarted:
    """A child is ready; `incarnation` counts its starts from 1."""

    path: str
    incarnation: int


@dataclass(frozen=True)
class ChildStopped:
    """A child ended because its supervisor wanted it to."""

    path: str
    incarnation: int
    reason: ExitReason


@dataclass(frozen=True)
class ChildExited:
    """A child ended by itself, orderly or not."""

    path: str
    incarnation: int
    reason: ExitReason


@dataclass(frozen=True)
class ChildStartFailed:
    """A child ended before it was ready."""

    path: str
    reason: ExitReason


@dataclass(frozen=True)
class ChildRestartScheduled:
    """A child is to be started again after `delay` seconds; `restarts` are in the window now."""

    path: str
    delay: float
    restarts: int


@dataclass(frozen=True)
class SupervisorGaveUp:
    """A supervisor ends, since child `child_id` made it exceed its restart intensity."""

    path: str
    child_id: Hashable
    reason: ExitReason


@dataclass(frozen=True)
class ChildStuck:
    """A child was cancelled and has not ended for `seconds`; `stack` shows where it hangs."""

    path: str
    seconds: float
    stack: tuple[str, ...]


@dataclass(frozen=True)
class MessagesLost:
    """`count` queued messages of an actor were thrown away, since it ended."""

    path: str
    count: int


@dataclass(frozen=True)
class TreeReport:
    """What a tree is doing, because somebody asked for it with `Supervisor.report`."""

    path: str
    tree: ChildInfo


Notice = (
    ChildStarted
    | ChildStopped
    | ChildExited
    | ChildStartFailed
    | ChildRestartScheduled
    | SupervisorGaveUp
    | ChildStuck
    | MessagesLost
    | TreeReport
)
