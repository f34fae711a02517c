"""Output: what is asked for goes to stdout, everything else to stderr, and no text steers the terminal."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import msgspec
import typer
from rich.console import Console
from rich.json import JSON
from rich.text import Text

from omniactors.cli.exits import OutputClosed, OutputFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPE_WIDTH = 10_000
"""Columns when nobody looks: lines in a pipe are not wrapped or cut."""


_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")


class Format(StrEnum):
    """How a command answers: for people, or one JSON document."""

    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", "-f", help="[b]json[/b] writes one JSON document to stdout and nothing else.")
]


class _Answers(Console):
    """A console on stdout; raises OutputClosed when nobody reads it any more, OutputFailed when it is not written."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OutputClosed
        super().__init__(width=_width(sys.stdout), highlight=False, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Write them, at once."""
        with _answering():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Called by rich."""
        raise OutputClosed


@contextmanager
def _answering() -> Iterator[None]:
    """Around what writes to stdout."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosed from error
    except OSError as error:
        raise OutputFailed(error.strerror or str(error)) from error


class _Notices(Console):
    """A console on stderr; what nobody reads, or cannot be written, is lost, and the command goes on."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Write them, at once."""
        try:
            super().print(*objects, **options)
        except OSError:
            forget(sys.stderr)

    def __init__(self) -> None:
        is_closed = sys.stderr is None
        width = None if is_closed else _width(sys.stderr)
        super().__init__(stderr=True, quiet=is_closed, width=width, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Called by rich."""
        forget(sys.stderr)


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() else PIPE_WIDTH


def stdout() -> Console:
    """The console for answers; made anew, since tests and pipes change what stdout is."""
    return _Answers()


def stderr() -> Console:
    """The console for notices and errors."""
    return _Notices()


def forget(stream: TextIO | None) -> None:
    """Lead what is left to write nowhere, so that the interpreter does not complain when it ends."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def file_of(stream: TextIO | None) -> tuple[int, int] | None:
    """Which file, pipe or device it is written to; None when that cannot be told."""
    try:
        found = os.fstat(stream.fileno()) if stream is not None else None
    except (OSError, ValueError):
        return None
    return None if found is None else (found.st_dev, found.st_ino)


def flush_notices() -> None:
    """Write what stderr still holds, or forget it when nobody reads; else the exit code would become 120."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        forget(sys.stderr)


def print_json(value: object) -> None:
    """Write `value`, of any type that msgspec encodes, as one line of JSON; raises OutputClosed."""
    if sys.stdout is None:
        raise OutputClosed
    with _answering():
        sys.stdout.write(_spelled(msgspec.json.encode(value).decode()) + "\n")
        sys.stdout.flush()


def print_pretty(value: object) -> None:
    """Write `value` as indented JSON, coloured on a terminal."""
    text = _spelled(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    console = stdout()
    console.print(JSON(text) if console.is_terminal else Text(text))


def _spelled(text: str) -> str:
    """JSON as stdout can hold it: where that is not UTF-8, in ASCII, which every reader takes for the same."""
    if sys.stdout is not None and (sys.stdout.encoding or "").lower().replace("-", "").replace("_", "") == "utf8":
        return text
    # In JSON what is beyond ASCII stands in strings alone.
    return _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)


def spell_out() -> None:
    """Have stdout and stderr spell out what their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def notice(message: str) -> None:
    """Say something beside the answer; lost when nobody reads it, or the terminal is gone."""
    stderr().print(Text(safe(message), style="dim"), soft_wrap=True)


def say(message: str) -> None:
    """A notice of what runs, told apart from what the agents print."""
    notice(f"omniactors: {message}")


def complain(message: str) -> None:
    """Say why the command failed."""
    stderr().print(Text.assemble(("error: ", "bold red"), safe(message)), soft_wrap=True)


def agrees(question: str) -> bool:
    """Whether the answer on stdin is yes; the question goes to stderr, since stdout is for the answer."""
    stderr().print(Text(safe(question)), end="")
    return sys.stdin is not None and sys.stdin.readline().strip().lower() in ("y", "yes")


def safe(text: str) -> str:
    """`text` with its control characters spelt out, so that an event cannot move anyone's cursor."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def one_line(value: object, limit: int = 200) -> str:
    """`value` as compact JSON on one line of at most `limit` characters."""
    text = safe(msgspec.json.encode(value).decode())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def counted(number: int, thing: str) -> str:
    """`number` and `thing`, in the plural that the number wants: 1 agent, 2 agents."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
