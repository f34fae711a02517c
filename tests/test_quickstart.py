"""The quickstart does what README says it does, as a process of its own in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.source import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_the_quickstart_prints_what_an_agent_computed(tmp_path: Path) -> None:
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "quickstart.py")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout == "Hello Alice\n"
    assert (tmp_path / ".omniactors" / "omniactors.db").is_file()
