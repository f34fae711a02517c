"""The command line as its users start it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.source import ROOT

if TYPE_CHECKING:
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
