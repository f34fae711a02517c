"""What docs/operations.md names exists: the checks of the doctor, the lines of the log, the settings."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from omniactors import OmniActors
from omniactors.settings import KNOWN
from tests.source import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.redis_server import RedisServer

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> list[str]:
    """What stands in code font in the first column of the table whose heading line begins so."""
    (table,) = re.findall(rf"^\| {re.escape(heading)} \|.*?\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [name for line in table.splitlines() for name in re.findall("`(.*?)`", line.split("|")[1])]


def texts() -> str:
    """All string constants of the package, a line each."""
    files = (ROOT / "omniactors").rglob("*.py")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\n".join(node.value for node in nodes if isinstance(node.value, str))


def test_every_line_of_the_log_is_one_that_is_written() -> None:
    lines, written = first_cells("line"), texts()
    assert len(lines) > 8
    pieces = [piece.strip() for line in lines for piece in line.split("...") if piece.strip()]
    assert [piece for piece in pieces if piece not in written] == []


def test_every_setting_exists() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for path in documents for name in re.findall(r"OMNIACTORS_[A-Z_]+", path.read_text(encoding="utf-8"))}
    assert named <= set(KNOWN)
    assert "REDIS_URL" in first_cells("setting")


@pytest.mark.parametrize("store", ["Redis", "the embedded file"])
async def test_every_check_of_the_doctor_is_named(store: str, tmp_path: Path, redis_server: RedisServer) -> None:
    omni = OmniActors(f"sqlite:///{tmp_path / 'work.db'}" if store == "the embedded file" else redis_server.url)
    found = {finding.check for finding in await omni.doctor()}
    await omni.shutdown()
    of_both = {
        *("agents that gave up", "gateway", "unserved agents"),
        *("paused agents", "room in the streams", "dead letters"),
    }
    assert found - of_both <= set(first_cells(f"check on {store}"))
    assert all(f"`{check}`" in PAGE for check in of_both & found)
