"""Commands that look after a running system: pauses, dead letters, delays, metrics, configuration, doctor."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.command import Finished, command, omniactors, running, standing, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Cli

AGENTS = """
import pathlib
from omniactors import Agent, RetryPolicy

class Echo(Agent, topic="echo", name="echo"):
    async def handle(self, event):
        return event.payload.content

class Moody(Agent, topic="moody", name="moody", retry=RetryPolicy(max_attempts=1)):
    async def handle(self, event):
        if event.payload.content == "bad":
            raise LookupError("not today")
        if not pathlib.Path("mended").exists():
            raise ValueError("my own words")
        return "fine"
"""

SECOND = """
from omniactors import Agent

class Second(Agent, topic="echo", name="second"):
    async def handle(self, event):
        return None
"""


@pytest.fixture
def store(tmp_path: Path, cli: Cli) -> Iterator[Cli]:
    """Commands on the store of a runner in another process."""
    (tmp_path / "agents.py").write_text(AGENTS)
    with standing(tmp_path, "agents.py"):
        yield cli


def publish(store: Cli, topic: str, content: str, *options: str) -> Finished:
    return store("task", "publish", "-t", topic, "-c", content, "-f", "json", *options)


def fate(store: Cli, published: Finished, wait: float) -> str:
    """The status of a task after so many seconds at most."""
    done = store("task", "result", "--task-id", published.document()["task_id"], "--wait", str(wait), "-f", "json")
    status: str = done.document()["status"]
    return status


def letters(store: Cli, *filters: str) -> list[str]:
    """The errors of the dead letters that the filters admit."""
    return [letter["error"] for letter in store("streams", "dlq", "-t", "moody", "-f", "json", *filters).document()]


def test_a_paused_agent_gets_nothing_until_it_is_resumed(store: Cli) -> None:
    assert store("agent", "pause", "echo").stderr == "echo is paused; go on with: omniactors agent resume echo\n"
    published = publish(store, "echo", "1")
    assert fate(store, published, 0.3) == "pending"
    (listed,) = store("agent", "list", "-f", "json").document()["echo"]
    assert listed["paused"] is True
    for layout in ("tree", "table", "compact"):
        assert "echo  paused" in store("agent", "list", "-f", layout).stdout
    assert store("agent", "resume", "--name", "echo", "-f", "json").document() == {"agent": "echo", "paused": False}
    assert fate(store, published, 20) == "success"
    assert store("agent", "resume", "echo").stderr == "echo was not paused\n"


def test_an_agent_that_is_not_there_cannot_be_paused(store: Cli) -> None:
    done = store("agent", "pause", "--name", "ehco", "-f", "json")
    assert done.code == 1
    assert done.stderr.startswith("error: there is no agent 'ehco'; there are: echo, moody; did you mean 'echo'?")
    assert done.document()["error"] == done.stderr.removeprefix("error: ").rstrip()


def test_dead_letters_are_filtered_replayed_and_purged(store: Cli, tmp_path: Path) -> None:
    start = time.time()
    first, second, _ = [publish(store, "moody", content, "--wait", "20") for content in ("one", "two", "bad")]
    assert first.document()["status"] == second.document()["status"] == "failed"
    assert letters(store) == ["LookupError: not today", "ValueError: my own words", "ValueError: my own words"]
    assert letters(store, "--limit", "1") == ["LookupError: not today"]
    assert letters(store, "--error-type", "ValueError", "--agent", "moody", "--reason", "handler-error") == [
        "ValueError: my own words",
        "ValueError: my own words",
    ]
    assert letters(store, "--reason", "timeout") == letters(store, "--agent", "echo") == []
    assert letters(store, "--until", str(start)) == letters(store, "--since", str(time.time() + 60)) == []
    assert len(letters(store, "--since", str(start), "--until", str(time.time() + 60))) == 3
    oldest = store("streams", "dlq", "-t", "moody", "-f", "json").document()[-1]["id"]
    assert letters(store, "--id", oldest) == ["ValueError: my own words"]

    (tmp_path / "mended").touch()
    done = store("streams", "replay", "-t", "moody", "--error-type", "ValueError", "--limit", "1", "-f", "json")
    assert done.document() == {"topic": "moody", "replayed": 1}
    assert fate(store, first, 20) == "success"
    assert letters(store) == ["LookupError: not today", "ValueError: my own words"]
    text = store("bus", "replay", "-t", "moody", "--error-type", "ValueError")
    assert text.stdout == "1 dead letter of moody was given back to its agent.\n"
    assert fate(store, second, 20) == "success"
    assert store("streams", "replay", "-t", "moody", "--reason", "timeout").stderr == "No such dead letters at moody.\n"

    assert store("streams", "purge", "-t", "moody", "--yes", "-f", "json").document() == {"topic": "moody", "purged": 1}
    assert letters(store) == []
    assert store("streams", "purge", "-t", "moody").stderr == "No dead letters at moody.\n"


def test_a_purge_asks_first(store: Cli, tmp_path: Path) -> None:
    publish(store, "moody", "bad", "--wait", "20")
    question = "Delete 1 dead letter of moody for good? [y/N] "
    for answer in ("n\n", "\n", ""):
        done = omniactors(tmp_path, "streams", "purge", "-t", "moody", "-f", "json", stdin=answer)
        assert (done.code, done.document()["type"]) == (1, "CommandError")
        assert done.stderr == f"{question}error: nothing was deleted; --yes deletes without asking\n"
    assert len(letters(store)) == 1
    done = omniactors(tmp_path, "streams", "purge", "-t", "moody", "-f", "json", stdin="y\n")
    assert (done.code, done.document(), done.stderr) == (0, {"topic": "moody", "purged": 1}, question)
    assert letters(store) == []


def test_an_event_may_be_published_for_later(store: Cli) -> None:
    soon = publish(store, "echo", "1", "--delay", "0.5")
    then = publish(store, "echo", "2", "--at", str(time.time() + 0.5))
    late = publish(store, "echo", "3", "--at", "2999-01-01", "--wait-for-room")
    past = publish(store, "echo", "4", "--at", "2001-01-01T00:00Z")
    (stream,) = [stream for stream in store("streams", "list", "-f", "json").document() if stream["topic"] == "echo"]
    assert stream["scheduled"] >= 1
    assert fate(store, past, 20) == fate(store, soon, 20) == fate(store, then, 20) == "success"
    assert fate(store, late, 0) == "pending"
    assert "Scheduled" in store("streams", "list").stdout


async def test_a_full_stream_refuses_or_is_waited_for(tmp_path: Path) -> None:
    event = ("task", "publish", "-t", "echo", "-c", "1")
    full = "the stream of 'echo' is full: it holds 1 events and may hold 1"
    assert (await command(tmp_path, *event, OMNIACTORS_STREAM_LIMIT="1")).code == 0
    assert await command(tmp_path, *event, OMNIACTORS_STREAM_LIMIT="1") == Finished(3, "", f"error: {full}\n")
    (tmp_path / "agents.py").write_text(AGENTS)
    async with started(tmp_path, *event, "--wait-for-room", OMNIACTORS_STREAM_LIMIT="1") as waiting:
        await waiting.logged(f"{full}; waiting for room")
        async with running(tmp_path, "agents.py"):
            assert await waiting.ended() == 0


def test_metrics_count_tries_by_topic_and_agent(store: Cli) -> None:
    assert store("metrics").stderr.startswith("Nothing has been handled yet at sqlite:///")
    assert store("metrics", "-f", "json").document() == {}
    for topic, content in (("echo", "1"), ("echo", "2"), ("moody", "bad")):
        publish(store, topic, content, "--wait", "20")
    counts = store("metrics", "-f", "json").document()
    assert (counts["echo"]["echo"]["tasks_processed"], counts["moody"]["moody"]["tasks_failed"]) == (2, 1)
    assert set(counts["echo"]["echo"]) >= {"tasks_received", "total_processing_time", "avg_processing_time_sec"}
    assert list(store("metrics", "--topic", "moody", "-f", "json").document()) == ["moody"]
    assert store("metrics", "--topic", "none").stderr.startswith("Nothing has been handled yet at none, in sqlite:///")
    head, row = store("metrics", "--topic", "echo").stdout.splitlines()
    assert head.split() == ["Topic", "Agent", "Received", "Processed", "Failed", "Retried", "Time", "Average"]
    assert row.split()[:6] == ["echo", "echo", "2", "2", "0", "0"]


@pytest.mark.parametrize(
    ("text", "value"), [('{"a": [1, null]}', {"a": [1, None]}), ("plain words", "plain words"), ("-5", -5)]
)
def test_a_value_is_kept_for_other_processes(cli: Cli, tmp_path: Path, text: str, value: object) -> None:
    assert cli("config", "set", "my key", text).code == 0
    assert omniactors(tmp_path, "config", "get", "my key", "-f", "json").document() == {"key": "my key", "value": value}
    assert json.loads(cli("config", "get", "my key").stdout) == value
    assert cli("config", "list", "-f", "json").document() == {"my key": value}
    assert "my key" in cli("config", "list").stdout
    assert cli("config", "delete", "my key", "-f", "json").document() == {"key": "my key", "deleted": True}
    assert cli("config", "list", "-f", "json").document() == {}


def test_a_value_that_is_not_there_is_a_failure_unless_there_is_a_default(cli: Cli) -> None:
    done = cli("config", "get", "k")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.endswith("error: there is no value for 'k'\n")
    assert cli("config", "get", "k", "--default", "[1]", "-f", "json").document() == {"key": "k", "value": [1]}
    done = cli("config", "delete", "k", "-f", "json")
    assert (done.code, done.document()) == (1, {"key": "k", "deleted": False})


def test_doctor_finds_nothing_wrong_with_a_good_store(store: Cli) -> None:
    done = store("doctor")
    assert (done.code, done.stderr) == (0, "all is well\n")
    findings = store("doctor", "-f", "json").document()
    assert {finding["status"] for finding in findings} == {"ok"}
    assert all(finding["check"] in done.stdout and finding["message"] in done.stdout for finding in findings)


def test_doctor_warns_of_what_waits_for_somebody(store: Cli) -> None:
    store("agent", "pause", "echo")
    done = store("doctor")
    assert (done.code, done.stderr) == (0, "1 warning\n")
    assert "paused: echo" in done.stdout
    assert "omniactors agent resume" in done.stdout


@pytest.mark.parametrize("layout", ["text", "json"])
@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:////proc/none/work.db", "/proc/none/work.db cannot be used"),
        ("redis://user:s3cret@127.0.0.1:1", "redis://127.0.0.1:1/0 cannot be reached"),
    ],
)
def test_doctor_says_that_a_store_cannot_be_reached(cli: Cli, layout: str, url: str, sentence: str) -> None:
    done = cli("doctor", "-f", layout, OMNIACTORS_URL=url)
    assert done.code == 1
    assert sentence in done.stdout
    assert "s3cret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if layout == "json":
        assert done.document()[0]["status"] == "error"


def test_a_narrow_terminal_cuts_no_finding(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniactors.cli.output.PIPE_WIDTH", 40)
    (tmp_path / "file").write_text("no database")
    done = cli("doctor", OMNIACTORS_URL="sqlite:///file")
    assert all(len(line) <= 40 for line in done.stdout.splitlines())
    assert str(tmp_path) in "".join(part.strip() for part in done.stdout.splitlines())


def test_a_narrow_terminal_has_one_fact_a_line(store: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, "echo", "1", "--wait", "20")
    monkeypatch.setattr("omniactors.cli.output.PIPE_WIDTH", 30)
    lines = store("metrics").stdout.splitlines()
    assert lines[:3] == ["echo", "  agent      echo", "  received   1"]
    assert max(map(len, store("streams", "list").stdout.splitlines())) <= 30


def test_agents_of_one_topic_are_listed_below_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENTS)
    (tmp_path / "more.py").write_text(SECOND)
    with standing(tmp_path, "agents.py"), standing(tmp_path, "more.py"):
        rows = [line.split() for line in cli("streams", "list").stdout.splitlines()]
    head = ["Topic", "Agent", "Length", "Scheduled", "Waiting", "Pending", "Delayed", "Dead"]
    assert rows == [head, ["echo", "echo", *"000000"], ["second", *"0000"], ["moody", "moody", *"000000"]]


# -- storage ------------------------------------------------------------------------------------


def test_the_store_is_backed_up_while_it_runs_and_put_back_when_it_does_not(
    store: Cli, tmp_path: Path, cli: Cli
) -> None:
    published = publish(store, "echo", '"hello"')
    assert fate(store, published, 10) == "success"
    assert "Backed up" in store("storage", "backup", "copy.db").stderr
    again = store("storage", "backup", "copy.db")
    assert (again.code, "--force" in again.stderr) == (1, True)
    assert store("storage", "backup", "copy.db", "--force").code == 0
    document = store("storage", "backup", "copy.db", "--force", "-f", "json").document()
    assert document == {"backup": str(tmp_path / "copy.db")}
    refused = store("storage", "restore", "copy.db", "-f", "json")
    assert refused.code != 0
    assert "is in use" in refused.document()["error"]
    (tmp_path / "elsewhere").mkdir()
    done = cli("storage", "restore", "copy.db", "-f", "json", OMNIACTORS_URL="sqlite:///elsewhere/omniactors.db")
    assert done.document() == {"restored": "copy.db", "kept": None}


def test_a_store_that_is_not_there_is_not_made_by_its_backup(tmp_path: Path, cli: Cli) -> None:
    refused = cli("storage", "backup", "copy.db")
    assert (refused.code, "nothing to back up" in refused.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []
