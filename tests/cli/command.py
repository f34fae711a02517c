"""The command line as its users start it: a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from tests.conftest import SETTINGS
from tests.source import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
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
    own = {name: value for name, value in os.environ.items() if name not in SETTINGS and name[:11] != "OMNIACTORS_"}
    return {**own, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(ROOT), **extra}


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


def into_closed_pipe(folder: Path, *arguments: str, **extra: str) -> Finished:
    """As `omniactors`, while whoever read its stdout has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=folder,
            env=environment(**extra),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writer)
    return Finished(done.returncode, "", done.stderr)


@contextmanager
def standing(folder: Path, *arguments: str) -> Iterator[None]:
    """As `running`, for many tests one after another; must end in order."""
    with (folder / "runner.err").open("w") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "run", *arguments, "--format", "json"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), f"the runner ended: {(folder / 'runner.err').read_text()}"
        yield
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@asynccontextmanager
async def started(folder: Path, *arguments: str, stderr: int | None = None, **extra: str) -> AsyncIterator[Started]:
    """A command in `folder`, whose stderr goes to a file unless said otherwise; killed at the end if it still runs."""
    log = folder / f"{arguments[0]}.err"
    with log.open("w") as file:
        process = await trio.lowlevel.open_process(
            [*COMMAND, *arguments],
            cwd=folder,
            env=environment(**extra),
            stdout=subprocess.PIPE,
            stderr=file if stderr is None else stderr,
        )
    try:
        yield Started(process, log)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()


@asynccontextmanager
async def running(folder: Path, *arguments: str, stderr: int | None = None, **extra: str) -> AsyncIterator[Runner]:
    """`omniactors run ARGUMENTS --format json` in `folder`, ready; killed at the end if it still runs."""
    async with started(folder, "run", *arguments, "--format", "json", stderr=stderr, **extra) as run:
        assert run.process.stdout is not None
        line = b""
        with trio.fail_after(30):
            while not line.endswith(b"\n"):
                part = await run.process.stdout.receive_some()
                assert part, f"the runner ended: {run.log.read_text()}"
                line += part
        yield Runner(run.process, run.log, json.loads(line))


@dataclass(frozen=True)
class Started:
    """A command that runs, and the file of its stderr."""

    process: trio.Process
    log: Path

    async def logged(self, text: str) -> None:
        """Return when `text` stands in what it wrote to stderr; raises trio.TooSlowError."""
        with trio.fail_after(40):
            while text not in self.log.read_text():  # noqa: ASYNC110 -- another process writes the file
                await trio.sleep(0.02)

    async def ended(self) -> int:
        """Its exit code; raises trio.TooSlowError."""
        with trio.fail_after(40):
            return await self.process.wait()


@dataclass(frozen=True)
class Runner(Started):
    """A `run` that is ready, with the document that it wrote."""

    document: dict[str, Any]


async def command(folder: Path, *arguments: str, **extra: str) -> Finished:
    """As `omniactors`, while other tasks go on."""
    return await trio.to_thread.run_sync(lambda: omniactors(folder, *arguments, **extra))
