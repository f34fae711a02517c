"""`run` and the module it is given: what it picks, and how it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.command import omniactors

if TYPE_CHECKING:
    from pathlib import Path

AGENT = """
from omniactors import Agent

class Mine(Agent, topic="t"):
    async def handle(self, event):
        return 1
"""


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = 1\n", "error: module.py has no agents"),
        ("from other import Mine\n", "error: module.py has no agents"),
        ("from omniactors import OmniActors\na = OmniActors()\nb = OmniActors()\n", "more than one OmniActors (a, b)"),
    ],
)
def test_a_module_without_one_clear_program_is_refused(tmp_path: Path, source: str, sentence: str) -> None:
    (tmp_path / "other.py").write_text(AGENT)
    (tmp_path / "module.py").write_text(source)
    done = omniactors(tmp_path, "run", "module.py")
    assert (done.code, done.stdout) == (2, "")
    assert sentence in done.stderr


def test_an_error_in_the_module_shows_the_users_own_frames(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("def break_it():\n    raise RuntimeError('my own fault')\n\nbreak_it()\n")
    done = omniactors(tmp_path, "run", "module.py")
    assert done.code == 1
    assert "module.py" in done.stderr
    assert "in break_it" in done.stderr
    assert "importlib" not in done.stderr
    assert "cli/loading" not in done.stderr
    assert done.stderr.endswith("error: module.py could not be imported: RuntimeError: my own fault\n")


def test_a_missing_import_of_the_module_is_the_modules_error(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import no_such_package\n")
    done = omniactors(tmp_path, "run", "module")
    assert done.code == 1
    assert "No module named 'no_such_package'" in done.stderr


def test_a_file_whose_name_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trio.py").write_text(AGENT)
    done = omniactors(tmp_path, "run", "trio.py")
    assert (done.code, done.stdout) == (2, "")
    assert "trio.py needs another name" in done.stderr
