"""Arguments: what is refused before anything starts, in one sentence and with the right code."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from omniactors.cli.events import parse_content
from omniactors.cli.exits import CommandError
from omniactors.cli.times import parse_time

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cli


COMMANDS = ("run", "watch", "info", "task", "agent", "streams", "bus", "config", "metrics", "doctor")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("task", "publish", "--content", "x"), "an event needs a topic"),
        (("task", "publish", "--topic", "t"), "an event needs content"),
        (("task", "publish", "--topic", "t", "--payload-file", "none.json"), "none.json cannot be read: No such file"),
        (("run", "none.py"), "there is no file 'none.py'"),
        (("run", "none.such.module"), "there is no file and no module 'none.such.module'"),
        (("run", "agents:Greeter"), "'agents:Greeter' is no module name; give 'agents'"),
        (("run", "x.py", "--listen", "8765"), "--listen must be HOST:PORT"),
        (("run", "x.py", "--allowed-host", "a:80"), "--allowed-host must be host names without port"),
        (("run", "x.py", "--workers", "2", "--listen", "8765"), "--listen must be HOST:PORT"),
        (("task", "publish", "-t", "t", "-c", "1", "--at", "soon"), "--at must be Unix seconds, or ISO 8601"),
        (("task", "publish", "-t", "t", "-c", "1", "--at", "1", "--delay", "1"), "--delay and --at exclude each other"),
        (("streams", "dlq", "-t", "t", "--since", "20300131"), "--since must be Unix seconds, or ISO 8601"),
        (("streams", "replay", "-t", "t", "--until", "1893456000000"), "--until '1893456000000' is not between"),
        (("streams", "purge", "-t", "t", "--since", "9", "--until", "9"), "--since must be before --until"),
        (("agent", "pause"), "give the name of one agent"),
        (("agent", "resume", "a", "--name", "a"), "give the name of one agent"),
        (("config", "set", "", "1"), "a key cannot be empty"),
        (("config", "set", "k", "{"), "VALUE is no JSON: Expecting property name"),
        (("config", "get", "k", "--default", "NaN"), "--default is no JSON: NaN has no form in it"),
    ],
)
def test_a_command_that_cannot_be_understood_exits_2(cli: Cli, arguments: tuple[str, ...], sentence: str) -> None:
    done = cli(*arguments)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("task", "result"),
        ("task", "publish", "-t", "t", "-c", "1", "--delay", "-1"),
        ("streams", "dlq"),
        ("streams", "dlq", "-t", "t", "--reason", "x"),
        ("streams", "purge", "-t", "t", "-n", "0"),
        ("agent", "list", "-f", "x"),
        ("config", "set", "k"),
        ("metrics", "-f", "csv"),
    ],
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
        ('{"topic": "t", "tpoic": 1, "b": 2}', "event.json has unknown fields: b, tpoic; allowed are topic, payload, "),
        ('{"payload": {"contents": 1}}', "the payload in event.json has unknown fields: contents; allowed are content"),
        ('{"id": "a", "task_id": "b"}', "event.json has two ids"),
        ('{"id": 7}', "Expected `str | null`, got `int` - at `$.id`"),
    ],
)
def test_a_payload_file_that_is_no_event_is_refused(cli: Cli, tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "event.json").write_text(text)
    done = cli("task", "publish", "--payload-file", "event.json")
    assert (done.code, done.stdout) == (2, "")
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": 1', "Expecting ',' delimiter, line 1 column 8"),
        ("\n [1,\n  x]", "Expecting value, line 3 column 3"),
        ('"abc', "Unterminated string starting, line 1 column 1"),
        ('"a" or "b"', "Extra data, line 1 column 5"),
        ('{"a": NaN}', "NaN has no form in it, invalid character (byte 6)"),
        ("NaN", "NaN has no form in it"),
        ("Infinity", "Infinity has no form in it"),
        ("-Infinity", "-Infinity has no form in it"),
        ("[1e999]", "Number out of range - at `$[0]`"),
        ("[" * 100_000, "maximum recursion depth"),
    ],
)
def test_content_that_was_meant_as_json_and_is_none_is_refused(cli: Cli, text: str, sentence: str) -> None:
    done = cli("task", "publish", "--topic", "t", "--content", text)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --content is no JSON: ")
    assert sentence in done.stderr
    assert "to send it as text, make it a JSON string" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain words", "plain words"),
        ("12 monkeys {", "12 monkeys {"),
        ("nan", "nan"),
        ("-", "-"),
        ("", ""),
        ('"{not json"', "{not json"),
        (" [1, null] ", [1, None]),
    ],
)
def test_content_is_json_or_plain_words(text: str, value: object) -> None:
    assert parse_content(text) == value


def test_content_of_broken_bytes_is_refused(cli: Cli) -> None:
    done = cli("task", "publish", "--topic", "t", "--content", "a\udcff")
    assert (done.code, done.stderr) == (2, "error: --content is not UTF-8 at character 1\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("task", "publish", "--topic", "t", "--content", "1"),
        ("task", "result", "--task-id", "x"),
        ("agent", "list"),
        ("streams", "list"),
        ("bus", "dlq", "--topic", "t"),
        ("watch",),
        ("agent", "pause", "a"),
        ("agent", "resume", "a"),
        ("streams", "replay", "-t", "t"),
        ("streams", "purge", "-t", "t", "--yes"),
        ("config", "list"),
        ("metrics",),
        ("doctor",),
    ],
)
def test_a_store_in_memory_is_refused_where_it_would_be_empty(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, OMNIACTORS_URL="memory://")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: memory:// (from OMNIACTORS_URL) is a store inside one process")
    assert "use sqlite:///FILE" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("info",), ("task", "publish", "--topic", "t", "--content", "1")])
def test_a_bad_setting_is_a_usage_error(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, OMNIACTORS_GRACE="soon")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == "error: OMNIACTORS_GRACE must be a number of seconds of at least 0, not 'soon'\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        (" 1893456000.5 ", 1893456000.5),
        ("2030-01-01T00:00Z", 1893456000.0),
        ("2030-01-01T02:00:00+02:00", 1893456000.0),
        ("20300101T000000Z", 1893456000.0),
        # Without an offset it is local time, which is five hours behind here.
        ("2029-12-31T19:00", 1893456000.0),
        ("2029-12-31", 1893456000.0 - 19 * 3600),
    ],
)
def test_a_time_is_unix_seconds_or_iso_8601(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XXX5")
    time.tzset()
    try:
        assert parse_time(text, "--at") == seconds
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "2030", "20300101", "2030-13-01", "noon", "9" * 400, "1e300"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--at "):
        parse_time(text, "--at")


def test_info_is_one_document(cli: Cli, tmp_path: Path) -> None:
    done = cli("info", "--format", "json", OMNIACTORS_URL="sqlite:///x.db")
    assert done.document()["store"] == f"sqlite:///{tmp_path}/x.db"
    assert (done.code, done.stderr) == (0, "")


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == "omniactors 0.1.0\n"


def test_help_names_every_command(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        ("watch", "--url", "http://bob:hunter2@127.0.0.1:1"),
        ("watch", "--url", "http://bob:hun/ter2@127.0.0.1:1"),
        ("watch", "--url", "ftp://bob:hunter2@host"),
        ("run", "http://bob:hunter2@host"),
        ("run", "broken.py"),
        ("task", "publish", "-t", "t", "-c", "1", "--webhook", "bob:hunter2@host"),
    ],
)
def test_what_is_refused_is_told_without_the_password_in_it(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "broken.py").write_text("raise OSError('postgres://bob:hunter2@db refuses')")
    done = cli(*arguments)
    assert done.code != 0
    assert "ter2" not in done.stdout + done.stderr
