"""`omniactors streams` (and `bus`): what waits in the streams; their dead letters are in `letters`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.text import Text

from omniactors.cli import letters
from omniactors.cli.listing import Listing
from omniactors.cli.output import Format, FormatOption, notice, print_json, safe
from omniactors.cli.session import ask_system, store_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omniactors.streams.backend import StreamInfo

app = typer.Typer(no_args_is_help=True, help="The streams and their dead letters.")
app.command("dlq")(letters.dead_letters)
app.command("replay")(letters.replay)
app.command("purge")(letters.purge)


@app.callback()
def group() -> None:
    """The streams and their dead letters."""


@app.command("list")
def list_streams(output: FormatOption = Format.TEXT) -> None:
    """List the streams: their length, and what each agent has before it."""
    streams = ask_system(lambda omni: omni.streams.list())
    if output is Format.JSON:
        print_json(streams)
    elif streams:
        _print_streams(streams)
    else:
        notice(f"There are no streams yet in {store_name()}: nothing was published and no agent has run.")


def _print_streams(streams: Sequence[StreamInfo]) -> None:
    listing = Listing(
        "Topic", "Agent", numbers=("Length", "Scheduled", "Waiting", "Pending", "Delayed", "Dead"), shared=2
    )
    for stream in streams:
        topic = Text(safe(stream.topic), style="cyan")
        stored = (f"{stream.length:,}", f"{stream.scheduled:,}")
        if not stream.groups:
            listing.add(topic, Text("-", style="dim"), *stored)
        for group_info in stream.groups:
            counts = (group_info.waiting, group_info.pending, group_info.delayed)
            dead = Text(f"{group_info.dead:,}", style="bold red" if group_info.dead else "")
            listing.add(topic, group_info.agent, *stored, *(f"{count:,}" for count in counts), dead)
    listing.print()
