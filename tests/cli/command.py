"""The command line as its users start it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from tests.source import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

COMMAND = (sys.executable, "-P", "-W", "error", "-c", "from omniactors.cli import main; main()")
"""What the installed script runs (without the working directory on its path), with warnings as errors."""


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def document(self) -> Any:
        """The one JSON document on stdout; raises ValueError when there is anything else."""
        return json.loads(self.stdout)


def environment(**extra: str) -> dict[str, str]:
    """A terminal of 100 columns without colours, and no settings but `extra`."""
    return {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(ROOT), **extra}


def omniactors(folder: Path, *arguments: str, stdin: str = "", **extra: str) -> Finished:
    """Run a command in `folder` to its end, within a minute."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(**extra),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@asynccontextmanager
async def running(folder: Path, *arguments: str, **extra: str) -> AsyncIterator[Runner]:
    """`omniactors run ARGUMENTS --format json` in `folder`, ready; killed at the end if it still runs."""
    with (folder / "runner.err").open("w") as stderr:
        process = await trio.lowlevel.open_process(
            [*COMMAND, "run", *arguments, "--format", "json"],
            cwd=folder,
            env=environment(**extra),
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        assert process.stdout is not None
        line = b""
        with trio.fail_after(30):
            while not line.endswith(b"\n"):
                part = await process.stdout.receive_some()
                assert part, f"the runner ended: {(folder / 'runner.err').read_text()}"
                line += part
        yield Runner(process, json.loads(line), folder / "runner.err")
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()


@dataclass(frozen=True)
class Runner:
    """A `run` that is ready: its process, and the document that it wrote."""

    process: trio.Process
    document: dict[str, Any]
    log: Path

    async def logged(self, text: str) -> None:
        """Return when `text` stands in what it wrote to stderr; raises trio.TooSlowError."""
        with trio.fail_after(20):
            while text not in self.log.read_text():  # noqa: ASYNC110 -- another process writes the file
                await trio.sleep(0.02)

    async def ended(self) -> int:
        """Its exit code; raises trio.TooSlowError."""
        with trio.fail_after(20):
            return await self.process.wait()


async def command(folder: Path, *arguments: str, **extra: str) -> Finished:
    """As `omniactors`, while other tasks go on."""
    return await trio.to_thread.run_sync(lambda: omniactors(folder, *arguments, **extra))
