"""Restart rules: what a supervisor does when a child ends.

Pure: the exit reasons, which of them lead to a restart, which children a strategy restarts with the
failed one, and how many restarts are too many. The vocabulary and the rules are those of OTP's
`supervisor` behaviour; time comes in as an argument.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import trio

from omniactors.errors import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

RestartType = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]
ExitKind = Literal["normal", "shutdown", "killed", "crash"]

T = TypeVar("T")


class Shutdown(Exception):
    """Raised by a child that ends in an orderly way: a transient child is not restarted after it."""


class Ignore(Exception):
    """Raised by a child before it is ready: it is not wanted now, and its supervisor goes on without it."""


@dataclass(frozen=True)
class ExitReason:
    """Why one run of a child ended.

    "normal": it returned by itself. "shutdown": it was asked to stop, or raised `Shutdown`.
    "killed": its grace time was over and it was cancelled. "crash": it raised `error`.
    """

    kind: ExitKind
    error: BaseException | None = None

    NORMAL: ClassVar[ExitReason]
    SHUTDOWN: ClassVar[ExitReason]
    KILLED: ClassVar[ExitReason]

    @classmethod
    def crash(cls, error: BaseException) -> ExitReason:
        """The reason of a child that raised `error`; a group stays a group."""
        return cls("crash", error)

    def matches(self, kind: type[BaseException]) -> bool:
        """Whether the child crashed with a `kind`, by itself or anywhere inside a group."""
        if isinstance(self.error, BaseExceptionGroup):
            return self.error.subgroup(kind) is not None
        return isinstance(self.error, kind)

    def __str__(self) -> str:
        return self.kind if self.error is None else f"{self.kind}: {shown(self.error)}"


ExitReason.NORMAL = ExitReason("normal")
ExitReason.SHUTDOWN = ExitReason("shutdown")
ExitReason.KILLED = ExitReason("killed")


def exit_reason(error: BaseException | None, *, asked: bool, killed: bool) -> ExitReason:
    """Why a run ended that raised `error` (None: it returned).

    `asked` and `killed` say what its supervisor had requested by then: a child that swallows its
    cancellation returns like any other, so the exception alone cannot tell.
    """
    crash = crash_part(error)
    if isinstance(crash, Shutdown):
        return ExitReason("shutdown", crash.__cause__)
    if crash is not None:
        return ExitReason.crash(crash)
    if killed:
        return ExitReason.KILLED
    if asked:
        return ExitReason.SHUTDOWN
    return ExitReason.NORMAL if error is None else ExitReason.KILLED


def crash_part(error: BaseException | None) -> BaseException | None:
    """What is left of `error` without trio's cancellations; a group without any is returned as it is."""
    if isinstance(error, BaseExceptionGroup):
        cancelled, rest = error.split(trio.Cancelled)
        return rest if cancelled is not None else error
    return None if isinstance(error, trio.Cancelled) else error


ESCAPING = (trio.Cancelled, KeyboardInterrupt, SystemExit)
"""What no supervisor may keep: it ends a run, not a handler. Other libraries' BaseExceptions, asyncio's CancelledError
above all, are errors like any other."""


def escaping_part(error: BaseException) -> BaseException | None:
    """What of `error` no supervisor may keep: cancellations, KeyboardInterrupt, SystemExit."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(ESCAPING)[0]
    return error if isinstance(error, ESCAPING) else None


def should_restart(restart: RestartType, reason: ExitReason) -> bool:
    """Whether a child of this restart type is started again after it ended by itself."""
    if restart == "transient":
        return reason.kind in ("crash", "killed")
    return restart == "permanent"


def restart_group(strategy: Strategy, children: Sequence[T], failed: T) -> Sequence[T]:
    """The children to stop (in reverse order) and then start (in this order) when `failed` ended.

    `children` are in start order.
    """
    if strategy == "one_for_one":
        return [failed]
    if strategy == "one_for_all":
        return children
    return children[children.index(failed) :]


@dataclass(frozen=True)
class Intensity:
    """At most `restarts` restarts within `period` seconds; one more and the supervisor gives up.

    The default, three in five seconds, is Elixir's; OTP's own is `Intensity(1, 5.0)`.
    """

    restarts: int = 3
    period: float = 5.0

    def __post_init__(self) -> None:
        """Raises ValueError for a count that is no integer >= 0 and for a period that is not > 0."""
        if isinstance(self.restarts, bool) or not isinstance(self.restarts, int) or self.restarts < 0:
            raise ValueError(f"Intensity.restarts must be an integer of at least 0, not {self.restarts!r}")
        if not 0 < self.period < math.inf:
            raise ValueError(f"Intensity.period must be a finite number of seconds above 0, not {self.period!r}")

    def __str__(self) -> str:
        return f"{self.restarts} restarts in {self.period:g} s"


class RestartWindow:
    """The restarts of the last `period` seconds, for all children of one supervisor together."""

    def __init__(self, intensity: Intensity) -> None:
        self.intensity = intensity
        self._times: deque[float] = deque()

    def allow(self, now: float) -> bool:
        """Count one restart at `now`; False when it is one too many.

        The window slides, and a restart that is exactly `period` old still counts
        (`supervisor:add_restart/1`).
        """
        self._forget(now)
        self._times.append(now)
        return len(self._times) <= self.intensity.restarts

    def count(self, now: float) -> int:
        """How many restarts the window holds at `now`."""
        self._forget(now)
        return len(self._times)

    def _forget(self, now: float) -> None:
        while self._times and now - self._times[0] > self.intensity.period:
            self._times.popleft()


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise ValueError unless `value` is one of the strings of the Literal `choices`."""
    allowed = getattr(choices, "__args__", ())  # get_args takes longer than all other checks of a spec
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
