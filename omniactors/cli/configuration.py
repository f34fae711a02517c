"""`omniactors config`: values that all programs on one store share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from omniactors.cli.events import parse_content
from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.listing import Listing
from omniactors.cli.output import (
    Format,
    FormatOption,
    notice,
    one_line,
    print_json,
    print_pretty,
    safe,
)
from omniactors.cli.session import ask_system, store_name, with_system
from omniactors.operations.nearness import near

if TYPE_CHECKING:
    from omniactors import OmniActors

app = typer.Typer(no_args_is_help=True, help="Values that all programs on one store share.")

KeyArgument = Annotated[str, typer.Argument(metavar="KEY")]

_VALUES_LIKE_MINUS_ONE = {"ignore_unknown_options": True}


@app.callback()
def group() -> None:
    """Values that all programs on one store share."""


@app.command("get")
def get_value(
    key: KeyArgument,
    default: Annotated[
        str | None,
        typer.Option(metavar="JSON_OR_TEXT", help="Printed when there is no value; without it that is a failure."),
    ] = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Print a value as JSON; exit code 1 when there is none."""
    otherwise = None if default is None else parse_content(default, "--default")
    values = ask_system(lambda omni: omni.config.list())
    if key not in values and default is None:
        raise CommandError(f"there is no value for {key!r}{near(key, values)}")
    value = values.get(key, otherwise)
    if output is Format.JSON:
        print_json({"key": key, "value": value})
    else:
        print_pretty(value)


@app.command("set", context_settings=_VALUES_LIKE_MINUS_ONE)
def set_value(
    key: KeyArgument,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="JSON, or plain words, which are taken as text.")],
    output: FormatOption = Format.TEXT,
) -> None:
    """Keep a value; it replaces the one that is there."""
    if not key:
        raise CommandError("a key cannot be empty", ExitCode.USAGE)
    parsed = parse_content(value, "VALUE")

    async def keep(omni: OmniActors) -> None:
        await omni.config.set(key, parsed)

    with_system(keep)
    if output is Format.JSON:
        print_json({"key": key, "value": parsed})
    else:
        notice(f"{key} is {one_line(parsed)}")


@app.command("delete")
def delete_value(key: KeyArgument, output: FormatOption = Format.TEXT) -> None:
    """Forget a value; exit code 1 when there was none."""
    was_there = ask_system(lambda omni: omni.config.delete(key))
    if output is Format.JSON:
        print_json({"key": key, "deleted": was_there})
        raise typer.Exit(ExitCode.OK if was_there else ExitCode.FAILED)
    if not was_there:
        raise CommandError(f"there is no value for {key!r}")
    notice(f"{key} is deleted")


@app.command("list")
def list_values(output: FormatOption = Format.TEXT) -> None:
    """List all values by key."""
    values = ask_system(lambda omni: omni.config.list())
    if output is Format.JSON:
        print_json(values)
    elif values:
        listing = Listing("Key", "Value")
        for key in sorted(values):
            listing.add(Text(safe(key), style="cyan"), one_line(values[key]))
        listing.print()
    else:
        notice(f"There are no values in {store_name()}. Keep one with: omniactors config set KEY VALUE")
