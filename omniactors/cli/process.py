"""A worker process as its parent sees it: how it is started, and how it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from omniactors.cli.lifeline import ParentEnd
from omniactors.errors import OmniActorsError

if TYPE_CHECKING:
    from omniactors.cli.lifeline import Ready

LAST_WORD = 1.0
"""Seconds that what a dead worker has said may take to arrive."""

_SIGNAL_NAMES = {number.value: number.name for number in signal.Signals}


@dataclass(frozen=True)
class Command:
    """The `run` that the workers carry out. Worker 1 listens where `listen` says, the others on free local ports."""

    target: str
    listen: str | None
    token: str | None
    allowed_hosts: tuple[str, ...] = ()

    def line(self, number: int, lifeline: int) -> list[str]:
        """The command line of worker `number`; executed, not forked: it begins with nothing of this process."""
        # A folder that this process did not look for modules in is none of the workers' either.
        safe_path = [] if sys.path[0] in ("", str(Path.cwd())) else ["-P"]
        options = ["--worker", str(number), "--lifeline", str(lifeline)]
        if self.listen is not None and number == 1:
            options += ["--listen", self.listen]
        if self.token is not None:
            options += ["--token", self.token]
        for name in self.allowed_hosts:
            options += ["--allowed-host", name]
        warnings = [f"-W{option}" for option in sys.warnoptions]
        return [sys.executable, *safe_path, *warnings, "-m", "omniactors", "run", *options, "--", self.target]


class Worker:
    """One worker process, from its start to its end."""

    def __init__(self, number: int, process: trio.Process, lifeline: ParentEnd) -> None:
        self.number = number
        self.process = process
        self.lifeline = lifeline
        self.started_at = trio.current_time()
        self.ready: Ready | None = None
        self.ended = trio.Event()
        self._has_spoken = trio.Event()

    async def get_ready(self) -> None:
        """Wait until it is `ready`, or has ended before that."""
        try:
            self.ready = await self.lifeline.receive_ready()
        finally:
            self._has_spoken.set()

    async def watch(self) -> None:
        """Wait for its end."""
        await self.process.wait()
        # It may have been ready a moment ago: its word is heard first. A process that it left behind may have the line.
        with trio.move_on_after(LAST_WORD):
            await self._has_spoken.wait()
        self.lifeline.close()
        self.ended.set()

    def describe_end(self) -> str:
        """How it ended, in words that follow its name."""
        code = self.process.returncode
        if code is not None and code < 0:
            how = f"was killed by {_SIGNAL_NAMES.get(-code, f'signal {-code}')}"
        else:
            how = f"ended with exit code {code}"
        return how if self.ready is not None else f"{how} before it was ready"

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.process.pid})"


class WorkerFailed(OmniActorsError):
    """A worker ended before it was ready; why is what it wrote to stderr. `code` is how it exited, if it did."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


async def start_process(command: Command, number: int) -> Worker:
    """Start a worker; not cancellable in the middle, so that no process is lost sight of. Raises WorkerFailed."""
    lifeline = ParentEnd()
    try:
        with trio.CancelScope(shield=True):
            process = await trio.lowlevel.open_process(
                command.line(number, lifeline.worker),
                stdin=subprocess.DEVNULL,
                pass_fds=(lifeline.worker,),
                # Ctrl-C is for the parent, which tells the workers in its own way.
                process_group=0,
            )
    except OSError as error:
        lifeline.close()
        raise WorkerFailed(f"worker {number} could not be started: {error.strerror}") from error
    lifeline.handed_over()
    return Worker(number, process, lifeline)
