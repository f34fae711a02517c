"""`omniactors streams` (and `bus`): what waits in the streams, and what died there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from omniactors.cli.output import Format, FormatOption, notice, one_line, print_json, safe, stdout
from omniactors.cli.session import with_system

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omniactors.streams.backend import DeadLetter, StreamInfo

app = typer.Typer(no_args_is_help=True, help="The streams and their dead letters.")

LABEL_WIDTH = 10


@app.callback()
def group() -> None:
    """The streams and their dead letters."""


@app.command("list")
def list_streams(output: FormatOption = Format.TEXT) -> None:
    """List the streams: their length, and what each agent has before it."""
    streams = with_system(lambda omni: omni.streams.list())
    if output is Format.JSON:
        print_json(streams)
    elif streams:
        _print_streams(streams)
    else:
        notice("There are no streams yet: nothing was published and no agent has run.")


@app.command("dlq")
def dead_letters(
    topic: Annotated[str, typer.Option("--topic", "-t", help="Whose dead letters.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most, newest first.")] = 10,
    output: FormatOption = Format.TEXT,
) -> None:
    """Show the newest dead letters of a topic, with the error that each died of."""
    letters = with_system(lambda omni: omni.streams.dlq(topic, limit=limit))
    if output is Format.JSON:
        print_json(letters)
    elif letters:
        for letter in letters:
            _print_letter(letter)
    else:
        notice(f"No dead letters at {topic}.")


def _print_streams(streams: Sequence[StreamInfo]) -> None:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("Topic")
    table.add_column("Length", justify="right")
    table.add_column("Agent")
    for heading in ("Waiting", "Pending", "Delayed", "Dead"):
        table.add_column(heading, justify="right")
    for stream in streams:
        head = [Text(safe(stream.topic), style="cyan"), Text(str(stream.length))]
        if not stream.groups:
            table.add_row(*head, Text("-", style="dim"))
        for group_info in stream.groups:
            counts = (group_info.waiting, group_info.pending, group_info.delayed)
            dead = Text(str(group_info.dead), style="bold red" if group_info.dead else "")
            table.add_row(*head, Text(safe(group_info.agent)), *map(str, counts), dead)
            head = [Text(), Text()]
    stdout().print(table)


def _print_letter(letter: DeadLetter) -> None:
    when = datetime.fromtimestamp(letter.failed_at, UTC).astimezone()
    message = letter.failed_message
    content = message.get("content") if isinstance(message, dict) else letter.body
    console = stdout()
    console.print(Text.assemble((safe(letter.agent), "bold"), (f"  {when:%Y-%m-%d %H:%M:%S}  {letter.reason}", "dim")))
    error = f"{letter.error_type}: {letter.error}" if letter.error_type else letter.error
    lines = [
        ("error", error, "red"),
        ("attempts", str(letter.attempts), ""),
        ("entry", letter.original_id, ""),
        ("content", one_line(content), ""),
    ]
    for label, value, style in lines:
        console.print(Text.assemble((f"  {label:<{LABEL_WIDTH}}", "dim"), (safe(value), style)))
