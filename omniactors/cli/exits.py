"""Exit codes: which one an error ends with, and the sentence that it is told in."""

from __future__ import annotations

from enum import IntEnum

from omniactors.agents.attempt import error_info
from omniactors.errors import (
    AgentError,
    BackendError,
    BackendRefused,
    EnvelopeError,
    GatewayError,
    OmniActorsError,
    SettingsError,
)


class ExitCode(IntEnum):
    """What a command tells the script that called it; documented in docs/cli.md."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    OUTPUT_FAILED = 74
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


class CommandError(OmniActorsError):
    """A command that cannot go on, for a reason of its own; `code` is what it exits with."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


class UserCodeError(CommandError):
    """Code of the user's raised while the program was to start; `report` is the traceback of their code alone."""

    def __init__(self, what: str, error: BaseException) -> None:
        info = error_info(error)
        super().__init__(f"{what}: {info.text}")
        self.report = info.traceback


class OutputClosed(CommandError):
    """Whoever read stdout has enough of it, as `head` has after its lines; nothing is said about that."""

    def __init__(self) -> None:
        super().__init__("stdout is closed", ExitCode.OUTPUT_CLOSED)


class OutputFailed(CommandError):
    """Stdout cannot be written, as on a full disk: whatever was done, nobody can rely on what was told of it."""

    def __init__(self, why: str) -> None:
        super().__init__(f"stdout cannot be written: {why}", ExitCode.OUTPUT_FAILED)


def expected_error(error: BaseException) -> OmniActorsError | None:
    """The first error of our own in `error`, if all of it is of our own; None for anything else.

    A nursery wraps what its tasks raise into a group; the user asked for one thing and is told one.
    """
    if isinstance(error, OmniActorsError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [expected_error(part) for part in error.exceptions]
        return found[0] if all(found) else None
    return None


def exit_code(error: OmniActorsError) -> ExitCode:
    """What a command that ends with `error` exits with."""
    match error:
        case CommandError():
            return error.code
        case SettingsError() | EnvelopeError() | AgentError():
            return ExitCode.USAGE
        case BackendRefused():
            return ExitCode.FAILED
        case BackendError() | GatewayError():
            return ExitCode.UNAVAILABLE
    return ExitCode.FAILED
