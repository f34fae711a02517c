"""The hang clinic: each program prints what the page says it prints, within a second of real time."""

from __future__ import annotations

import signal
import sys
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser

from tests.source import ROOT
from tests.test_documents import run_block

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sybil import Example

PAGE = ROOT / "docs" / "hang-clinic.md"
LIMIT = 1.0
"""Seconds for one program."""


def name(example: Example) -> str:
    """The heading above a block."""
    headings = [line for line in example.document.text[: example.start].splitlines() if line.startswith("#")]
    return headings[-1].lstrip("# ")


def page() -> tuple[Example, list[tuple[Example, Example]]]:
    """The beginning, and each program with the text below it."""
    parsers = [CodeBlockParser(language, run_block) for language in ("python", "text")]
    blocks = list(Sybil(parsers=parsers, path=str(PAGE.parent)).parse(PAGE))
    return blocks[0], list(zip(blocks[1::2], blocks[2::2], strict=True))


BEGINNING, PROGRAMS = page()


@pytest.fixture
def _alarm() -> Iterator[None]:
    """Break off what hangs, even where no cancellation reaches it."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"it still runs after {LIMIT} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def _beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the page's beginning."""
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    run_block(BEGINNING)


def test_there_are_a_dozen_programs_and_each_has_its_text() -> None:
    assert len(PROGRAMS) >= 12
    for program, text in PROGRAMS:
        assert name(program) == name(text)


@pytest.mark.usefixtures("_beginning", "_alarm")
@pytest.mark.parametrize(("program", "text"), PROGRAMS, ids=[name(program) for program, _ in PROGRAMS])
def test_a_program_ends_within_a_second(program: Example, text: Example, capsys: pytest.CaptureFixture[str]) -> None:
    run_block(program)
    assert capsys.readouterr().out == text.parsed
