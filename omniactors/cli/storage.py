"""`omniactors storage`: a backup of the embedded file while everything runs, and putting one back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.output import Format, FormatOption, notice, print_json
from omniactors.cli.session import missing_store, store_name, with_system
from omniactors.settings import read_settings

app = typer.Typer(no_args_is_help=True, help="Copies of the whole store.")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]


@app.callback()
def group() -> None:
    """Copies of the whole store."""


@app.command()
def backup(
    file: FileArgument,
    *,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE if it exists.")] = False,
    output: FormatOption = Format.TEXT,
) -> None:
    """Copy all that is stored now to FILE, while everything goes on running."""
    missing = missing_store(read_settings())
    if missing is not None:
        raise CommandError(f"there is no store at {missing} yet, and so nothing to back up", ExitCode.FAILED)
    target = with_system(lambda omni: omni.storage.backup(file, overwrite=force))
    if output is Format.JSON:
        print_json({"backup": str(target)})
    else:
        notice(f"Backed up {store_name()} to {target}.")


@app.command()
def restore(file: FileArgument, *, output: FormatOption = Format.TEXT) -> None:
    """Put the backup FILE in the place of the store, while nothing runs; the replaced one is kept."""
    aside = with_system(lambda omni: omni.storage.restore(file))
    if output is Format.JSON:
        print_json({"restored": str(file), "kept": None if aside is None else str(aside)})
        return
    notice(f"Restored {store_name()} from {file}.")
    if aside is not None:
        notice(f"What was there before is now {aside}.")
