"""Other people's task queues on Redis, each in a process of its own, so that each can have its own libraries.

`with_NAME.py` is a program that measures NAME: it is run by this Python, else by the one that the
variable ANCHOR_PYTHON names. arq needs that one: it wants a redis-py that is too old for us.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Work = Literal["pipeline", "publish"]

PYTHON = "ANCHOR_PYTHON"
MISSING = 3
"""The exit code of a program that does not find what it measures."""
TIMEOUT = 60.0
ROOT = Path(__file__).parents[3]


def anchor(name: str, work: Work, url: str, *, tasks: int, publishers: int = 1) -> float | None:
    """Tasks per second of `name` at `work` on the Redis at `url`; None when it is not installed.

    Raises RuntimeError when the program fails, and subprocess.TimeoutExpired.
    """
    arguments = ["-m", f"tests.benchmarks.anchors.with_{name}", work, url, str(tasks), str(publishers)]
    for python in pythons():
        with tempfile.TemporaryDirectory() as folder:  # some write files wherever they are
            done = subprocess.run(
                [python, *arguments],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        if done.returncode == 0:
            return float(done.stdout.split()[-1])  # after whatever the library prints
        if done.returncode != MISSING:
            raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    return None


def pythons() -> Iterator[str]:
    """The interpreters that may have the anchors, this one first."""
    yield sys.executable
    other = os.environ.get(PYTHON)
    if other:
        yield other
