"""The report of the file pipeline, in Markdown."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from file_reading import path_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from file_run import Run

TOP = 20
SLOWEST = 10


def write_report(run: Run, path: Path) -> None:
    """Write the report; raises OSError."""
    path.write_text("\n".join(lines(run)) + "\n", encoding="utf-8")


def lines(run: Run) -> Iterator[str]:
    """The report, line by line."""
    files = [indexed.file for indexed in run.done.values()]
    yield f"# Files below {text(run.root)}\n"
    yield f"{run.published} published, {len(files)} indexed, {len(run.rejected)} rejected, in {run.seconds:.1f} s."
    size, count = sum(file.size for file in files), sum(file.lines for file in files)
    yield f"{size:,} bytes and {count:,} lines, {len({file.sha256 for file in files})} different contents.\n"
    kinds = Counter(file.kind for file in files).most_common()
    yield from table("Types", ("type", "files"), kinds)
    uses: Counter[str] = Counter()
    spread: Counter[str] = Counter()
    for indexed in run.done.values():
        uses.update(indexed.words)
        spread.update(indexed.words.keys())
    top = sorted(uses, key=lambda word: (-uses[word], word))[:TOP]
    yield from table("Top words", ("word", "times", "files"), [(word, uses[word], spread[word]) for word in top])
    slowest = sorted(files, key=lambda file: -file.seconds)[:SLOWEST]
    rows = [(name(run, file.uri), f"{file.seconds * 1000:.1f}", file.size) for file in slowest]
    yield from table("Slowest", ("file", "ms", "bytes"), rows)
    failures = [(name(run, uri), why) for uri, why in sorted(run.rejected.items())]
    yield from table("Rejected", ("file", "reason"), failures)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """A heading and a table below it."""
    yield f"## {title}\n"
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in row)} |"
    yield ""


def name(run: Run, uri: str) -> str:
    """How a file is called in the report."""
    return text(path_of(uri).relative_to(run.root))


def text(path: Path) -> str:
    """A path on one line; what is no text in it is replaced."""
    return " ".join(os.fsencode(path).decode(errors="replace").split())
