"""What the tests of actors share: small actors, a log of notices, and a cancel at every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio
from trio.testing import MockClock

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

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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


class _CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step that any task takes."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._left = step
        self.has_fired = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count down."""
        if self._left == 0 and not self.has_fired:
            self.has_fired = True
            self._scope.cancel()
        self._left -= 1


def cancel_everywhere(scenario: Callable[[], Awaitable[None]], check: Callable[[], None] = lambda: None) -> int:
    """Run `scenario` once per step with a cancellation before that step, until it is no longer reached.

    After each run no task may be left, and `check` is called. A run that hangs fails. Returns the
    number of runs. The scenario may end as it likes, but not with an error.
    """
    step = 0
    while trio.run(_run_once, scenario, step, clock=MockClock(autojump_threshold=0)):
        check()
        step += 1
    check()
    return step


async def _run_once(scenario: Callable[[], Awaitable[None]], step: int) -> bool:
    trio.lowlevel.spawn_system_task(_watch)
    await trio.testing.wait_all_tasks_blocked()
    living = trio.lowlevel.current_statistics().tasks_living
    scope = trio.CancelScope()
    injector = _CancelAtStep(scope, step)
    trio.lowlevel.add_instrument(injector)
    with scope:
        await scenario()
    trio.lowlevel.remove_instrument(injector)
    assert trio.lowlevel.current_statistics().tasks_living == living, f"tasks are left after a cancel at step {step}"
    return injector.has_fired


async def _watch() -> None:
    await trio.sleep(HANG)
    raise AssertionError("the scenario hangs")
