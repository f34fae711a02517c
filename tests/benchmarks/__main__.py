"""All benchmarks, one after another, as a page of the docs: `python -m tests.benchmarks [NAME ...] [--output FILE]`.

A benchmark is a module of this package with `rows() -> list[Row]`. Those on Redis start a server of their
own; what the `bench` extra installs is measured beside (`tests.benchmarks.anchors`).
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import platform
import re
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import omniactors
import tests.benchmarks
from tests.benchmarks.report import Row, rate
from tests.redis_server import redis_binary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NOT_BENCHMARKS = ("__main__", "report")
PACKAGES = ("trio", "msgspec", "hiredis", "pykka", "omnidaemon", "faststream", "saq")
TITLE = """# Performance

What `python -m tests.benchmarks --output docs/performance.md` measured. The bare limit is the least that
the machine must do for such work; others do the same work in the same run. Rates depend on the machine,
and on what else it does: compare the ratios.
"""
HEADER = "| what | ours | bare limit | ours / bare | others | target |\n|---|---|---|---|---|---|"


class Benchmark(Protocol):
    """What a module here must have."""

    def rows(self) -> list[Row]:
        """Measure; takes some seconds."""
        ...


def benchmarks() -> Iterator[tuple[str, Benchmark]]:
    """Name and module of every benchmark there is, by name."""
    for found in pkgutil.iter_modules(tests.benchmarks.__path__):
        if found.name not in NOT_BENCHMARKS and not found.ispkg:
            yield found.name, cast("Benchmark", import_module(f"tests.benchmarks.{found.name}"))


def table(rows: Iterable[Row]) -> Iterator[str]:
    """The rows in Markdown, under a head that says where and when they were measured."""
    yield TITLE
    yield f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine()}; {', '.join(versions())}.\n"
    yield HEADER
    for row in rows:
        yield f"| {' | '.join(cells(row))} |"


def cells(row: Row) -> list[str]:
    """One row, cell by cell."""
    bare, ratio = ("", "") if row.bare is None else (rate(row.bare, row.unit), f"{row.ours / row.bare:.2f}")
    others = [
        f"{name}: not installed" if anchor is None else f"{name} {rate(anchor, row.unit)}: {row.ours / anchor:.1f}x"
        for name, anchor in row.anchors.items()
    ]
    return [row.name, rate(row.ours, row.unit), bare, ratio, "; ".join(others), row.target]


def machine() -> str:
    """System, processor and number of cores."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def versions() -> Iterator[str]:
    """What was measured, with what."""
    yield f"omniactors {omniactors.__version__}"
    yield f"Python {platform.python_version()}"
    yield f"SQLite {sqlite3.sqlite_version}"
    yield redis_version()
    for package in PACKAGES:
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue


def redis_version() -> str:
    """The version of the server that the benchmarks run."""
    told = subprocess.run([redis_binary(), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    found = re.search(r"v=(\S+)", told)
    return f"Redis {found[1] if found else told.strip()}"


def main() -> None:
    """Measure everything, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Run all benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; default: all")
    parser.add_argument("--output", type=Path, help="where the table goes; default: stdout")
    args = parser.parse_args()
    output: Path | None = args.output
    found = dict(benchmarks())
    if unknown := set(args.names) - found.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    rows: list[Row] = []
    for name in args.names or found:
        sys.stderr.write(f"{name} ...\n")
        rows += found[name].rows()
    text = "\n".join(table(rows)) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
