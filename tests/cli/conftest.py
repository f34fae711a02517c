"""The command line inside the test's own process: quick, for what starts no system."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

import pytest

from omniactors.cli import main
from tests.cli.command import Finished

if TYPE_CHECKING:
    from pathlib import Path


class Cli(Protocol):
    """Runs a command in the test's folder, with these settings."""

    def __call__(self, *arguments: str, **settings: str) -> Finished: ...


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str, **settings: str) -> Finished:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["omniactors", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return Finished(int(caught.value.code or 0), out, err)

    return run
