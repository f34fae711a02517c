"""Arguments: what is refused before anything starts, in one sentence and with the right code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cli


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("task", "publish", "--content", "x"), "an event needs a topic"),
        (("task", "publish", "--topic", "t"), "an event needs content"),
        (("task", "publish", "--topic", "t", "--payload-file", "none.json"), "none.json cannot be read: No such file"),
        (("run", "none.py"), "there is no file 'none.py'"),
        (("run", "none.such.module"), "there is no file and no module 'none.such.module'"),
        (("run", "x.py", "--listen", "8765"), "--listen must be HOST:PORT"),
        (("run", "x.py", "--workers", "2"), "--workers is not built yet"),
    ],
)
def test_a_command_that_cannot_be_understood_exits_2(cli: Cli, arguments: tuple[str, ...], sentence: str) -> None:
    done = cli(*arguments)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("nosuch",), ("task", "result"), ("streams", "dlq"), ("agent", "list", "-f", "x")]
)
def test_what_typer_refuses_exits_2_and_keeps_stdout_clean(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert (done.code, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "event.json is not an event in JSON: Input data was truncated"),
        ("[]", "event.json is not an event in JSON: Expected `object`, got `array`"),
        ('{"topic": 1}', "Expected `str | null`, got `int` - at `$.topic`"),
        ('{"topic": "t"}', "an event needs content"),
    ],
)
def test_a_payload_file_that_is_no_event_is_refused(cli: Cli, tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "event.json").write_text(text)
    done = cli("task", "publish", "--payload-file", "event.json")
    assert (done.code, done.stdout) == (2, "")
    assert sentence in done.stderr


@pytest.mark.parametrize("arguments", [("info",), ("task", "publish", "--topic", "t", "--content", "1")])
def test_a_bad_setting_is_a_usage_error(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, OMNIACTORS_GRACE="soon")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == "error: OMNIACTORS_GRACE must be a number of seconds of at least 0, not 'soon'\n"


def test_info_is_one_document(cli: Cli, tmp_path: Path) -> None:
    done = cli("info", "--format", "json", OMNIACTORS_URL="sqlite:///x.db")
    assert done.document()["store"] == f"sqlite:///{tmp_path}/x.db"
    assert (done.code, done.stderr) == (0, "")


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == "omniactors 0.1.0\n"


def test_help_names_every_command(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    assert all(name in done.stdout for name in ("run", "watch", "info", "task", "agent", "streams", "bus"))
