"""The code holds to its rules: ruff, mypy --strict, and pyright over the type tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.source import ROOT


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "--no-fix"),
        ("ruff", "format", "--check"),
        ("mypy", "--strict"),
        # Without it pyright looks for packages in whatever python stands first on PATH.
        ("pyright", "--pythonpath", sys.executable),
    ],
    ids=lambda command: command[0] if command[0] == "pyright" else " ".join(command),
)
def test_is_clean(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"
