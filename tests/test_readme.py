"""README's set-up commands: there are two, and CI runs the very one that runs the tests."""

from __future__ import annotations

import re

from tests.source import ROOT


def setup_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if "venv" in line]


def test_there_are_two_and_the_second_is_what_ci_runs() -> None:
    quickstart, tests = setup_commands()
    assert quickstart.endswith("examples/quickstart.py")
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
