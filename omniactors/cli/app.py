"""The command line as a whole: its commands, and how each way to fail ends."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Annotated

import trio
import typer

import omniactors
from omniactors.cli import agents, configuration, health, streams, tasks
from omniactors.cli.exits import ExitCode, OutputClosed, exit_code, expected_error
from omniactors.cli.loading import UserCodeError
from omniactors.cli.output import Format, FormatOption, complain, flush_notices, forget, print_json, stderr, stdout
from omniactors.cli.run import run
from omniactors.cli.watch import watch
from omniactors.settings import read_settings

if TYPE_CHECKING:
    from omniactors.errors import OmniActorsError

app = typer.Typer(
    name="omniactors",
    help="Supervised actors on trio: durable agents, and a WebSocket to watch them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(run)
app.add_typer(tasks.app, name="task")
app.add_typer(agents.app, name="agent")
app.add_typer(streams.app, name="streams")
app.add_typer(streams.app, name="bus", help="The same as streams.")
app.add_typer(configuration.app, name="config")
app.command()(watch)
app.command()(health.metrics)
app.command()(health.doctor)


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
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except (Exception, BaseExceptionGroup) as error:
        if isinstance(error, BaseExceptionGroup) and error.split(KeyboardInterrupt)[1] is None:
            sys.exit(ExitCode.INTERRUPTED)
        known = expected_error(error)
        if known is None:
            raise
        if isinstance(known, OutputClosed):
            forget(sys.stdout)
        else:
            _tell(known)
        sys.exit(exit_code(known))
    finally:
        flush_notices()


def _tell(error: OmniActorsError) -> None:
    """Say why it failed; an error in the user's module is shown with their code."""
    if isinstance(error, UserCodeError):
        stderr().out(error.report, end="")
    complain(str(error))
