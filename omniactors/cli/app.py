"""The command line as a whole: its commands, and how each way to fail ends."""

from __future__ import annotations

import errno
import platform
import re
import sys
from typing import TYPE_CHECKING, Annotated

import trio
import typer
from rich.text import Text

import omniactors
from omniactors.agents.attempt import lone_error
from omniactors.cli import agents, configuration, health, storage, streams, tasks
from omniactors.cli.exits import ExitCode, OutputClosed, OutputFailed, UserCodeError, exit_code, expected_error
from omniactors.cli.output import (
    Format,
    FormatOption,
    complain,
    file_of,
    flush_notices,
    forget,
    print_json,
    spell_out,
    stderr,
    stdout,
)
from omniactors.cli.run import run
from omniactors.cli.watch import watch
from omniactors.errors import ChildStartError
from omniactors.redaction import redact
from omniactors.settings import read_settings

if TYPE_CHECKING:
    from omniactors.errors import OmniActorsError

app = typer.Typer(
    name="omniactors",
    help="Supervised actors on trio: durable agents, and a WebSocket to watch them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(run)
app.add_typer(tasks.app, name="task")
app.add_typer(agents.app, name="agent")
app.add_typer(streams.app, name="streams")
app.add_typer(streams.app, name="bus", help="The same as streams.")
app.add_typer(configuration.app, name="config")
app.add_typer(storage.app, name="storage")
app.command()(watch)
app.command()(health.metrics)
app.command()(health.health)
app.command()(health.doctor)


_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What the system says of a file that takes nothing more."""


def _print_version(wanted: bool) -> None:
    if wanted:
        stdout().print(f"omniactors {omniactors.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", "-v", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Supervised actors on trio: durable agents, and a WebSocket to watch them."""


@app.command()
def info(output: FormatOption = Format.TEXT) -> None:
    """Show the versions and what the settings here choose."""
    settings = read_settings()
    facts = {
        "omniactors": omniactors.__version__,
        "python": platform.python_version(),
        "trio": trio.__version__,
        "store": str(settings.backend),
        "chosen_by": settings.chosen_by,
    }
    if output is Format.JSON:
        print_json(facts)
        return
    for label, value in facts.items():
        stdout().print(f"{label:<12}{value}")


def main() -> None:
    """Run the command line and exit; what is expected to fail is told in one sentence on stderr."""
    spell_out()
    written_to = file_of(sys.stdout)
    try:
        app()
    except SystemExit as end:
        if file_of(sys.stdout) != written_to:  # what shows the help has found that nobody reads it
            sys.exit(ExitCode.OUTPUT_CLOSED)
        # What cannot be understood is told on stderr by then, and is the reason of this end.
        describe = getattr(end.__context__, "format_message", None)
        if describe is not None and wants_json(sys.argv[1:]):
            _document(describe(), "UsageError")
        raise
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except (Exception, BaseExceptionGroup) as error:
        if isinstance(error, BaseExceptionGroup) and error.split(KeyboardInterrupt)[1] is None:
            sys.exit(ExitCode.INTERRUPTED)
        known = expected_error(error)
        if known is None and isinstance(error, OSError) and error.errno in _UNWRITTEN:
            known = OutputFailed(error.strerror or "it failed")  # by the help, which is not written by us
        if known is None:
            raise
        known = _as_users_own(known)
        _tell(known)
        sys.exit(exit_code(known))
    finally:
        flush_notices()


def _as_users_own(error: OmniActorsError) -> OmniActorsError:
    """The same; a start that code of the user's has ended is told as theirs, with their code."""
    cause = error.__cause__
    if not isinstance(error, ChildStartError) or cause is None or expected_error(cause) is not None:
        return error
    return UserCodeError(f"agent {error.child_id} did not start", lone_error(cause))


def _tell(error: OmniActorsError) -> None:
    """Say why it failed; an error in the user's module is shown with their code. For a script, on stdout too."""
    if isinstance(error, OutputClosed | OutputFailed):
        forget(sys.stdout)
    elif wants_json(sys.argv[1:]):
        _document(redact(str(error)), type(error).__name__)
    if isinstance(error, UserCodeError):
        stderr().print(Text(redact(error.report)), end="", soft_wrap=True)
    if not isinstance(error, OutputClosed):
        complain(redact(str(error)))


def _document(error: str, kind: str) -> None:
    """Tell a script why it failed."""
    try:
        print_json({"error": error, "type": kind})
    except (OutputClosed, OutputFailed):
        forget(sys.stdout)


def wants_json(words: list[str]) -> bool:
    """Whether these words of a command line ask for JSON, also when the rest of them is wrong."""
    text = " ".join(words)
    return re.search(r"(^| )(--format[ =]|-f[ =]?)json( |$)", text) is not None
