"""The command line end to end: runner, publisher and watcher are processes of their own on one store."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from tests.cli.command import Finished, command, into_closed_pipe, omniactors, running, standing, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Cli

AGENTS = """
import pathlib
import trio
from omniactors import Agent, Backoff, EventEnvelope, RetryPolicy

class Greeter(Agent, topic="greet.user", name="greeter", description="greets", tools=("voice",)):
    async def handle(self, event: EventEnvelope[dict]) -> dict:
        return {"greeting": f"Hello {event.payload.content['name']}"}

class Echo(Agent, topic="echo", name="echo"):
    async def handle(self, event):
        content = event.payload.content
        return [content, event.correlation_id, event.causation_id, event.source, event.tenant_id]

class Count(Agent, topic="count", name="count"):
    counts = {}

    async def handle(self, event):
        content = event.payload.content
        self.counts[content] = self.counts.get(content, 0) + 1
        return [content, self.counts[content]]

class Void(Agent, topic="void", name="void"):
    async def handle(self, event):
        return None

class Broken(Agent, topic="broken", name="broken", retry=RetryPolicy(max_attempts=1)):
    async def handle(self, event):
        raise ValueError("my own words")

class Patient(Agent, topic="patient", name="patient"):
    async def handle(self, event):
        pathlib.Path("started").touch()
        while not pathlib.Path("go").exists():
            await trio.sleep(0.02)
        return "finished"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(AGENTS)
    return tmp_path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a runner that serves many tests."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "agents.py").write_text(AGENTS)
    with standing(folder, "agents"):
        yield folder


@pytest.fixture
def store(shared: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands on the shared runner's store, from another process than the runner's."""
    monkeypatch.chdir(shared)
    return cli


async def wait_for(path: Path) -> None:
    with trio.fail_after(20):
        while not await trio.Path(path).exists():  # noqa: ASYNC110 -- another process makes the file
            await trio.sleep(0.02)


async def test_an_event_published_before_the_runner_is_handled_by_it(folder: Path) -> None:
    published = await command(folder, "task", "publish", "-t", "greet.user", "-c", '{"name": "Alice"}', "-f", "json")
    task_id = published.document()["task_id"]
    async with running(folder, "agents.py") as runner:
        assert runner.document["agents"] == ["broken", "count", "echo", "greeter", "patient", "void"]
        done = await command(folder, "task", "result", "--task-id", task_id, "--wait", "20", "--format", "json")
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.ended() == 0
    assert done.code == 0
    assert done.document() == {"task_id": task_id, "status": "success", "result": {"greeting": "Hello Alice"}}
    lines = runner.log.read_text().splitlines()
    assert all(line.startswith("omniactors: ") for line in lines)
    assert f"of {folder}/agents.py: broken, count, echo" in lines[1]
    assert lines[-1] == "omniactors: stopped"


def test_every_option_of_publish_reaches_the_agent(store: Cli, shared: Path) -> None:
    (shared / "event.json").write_text('{"topic": "none", "payload": {"content": "file"}, "source": "file"}')
    ids = ("--correlation-id", "c", "--causation-id", "k", "--tenant-id", "t")
    text = store("task", "publish", "-t", "echo", "-c", "just text", *ids, "--wait", "20")
    assert json.loads(text.stdout) == ["just text", "c", "k", None, "t"]
    file = store("task", "publish", "--payload-file", "event.json", "-t", "echo", "--wait", "20", "-f", "json")
    assert file.document()["result"] == ["file", None, None, "file", None]


@pytest.mark.parametrize("name", ["id", "task_id"])
def test_an_event_file_with_an_id_is_published_once(store: Cli, shared: Path, name: str) -> None:
    event = {"topic": "count", "payload": {"content": name}, name: f"my-{name}", "source": "file"}
    # As OmniDaemon writes them; both are the store's own.
    (shared / "event.json").write_text(json.dumps(event | {"created_at": 1.5, "delivery_attempts": 3}))
    publish = ("task", "publish", "--payload-file", "event.json", "--wait", "20", "-f", "json")
    first = store(*publish).document()
    assert first == {"task_id": f"my-{name}", "status": "success", "result": [name, 1]}
    assert store(*publish).document() == first
    other = store(*publish, "--task-id", f"other-{name}").document()
    assert other == {"task_id": f"other-{name}", "status": "success", "result": [name, 2]}


def test_a_null_result_is_a_result(store: Cli) -> None:
    published = store("task", "publish", "-t", "void", "-c", "1", "--wait", "20", "-f", "json")
    assert (published.code, published.document()["status"]) == (0, "success")
    again = store("task", "result", "--task-id", published.document()["task_id"])
    assert (again.code, again.stdout) == (0, "null\n")


def test_a_failed_task_is_told_and_found_among_the_dead(store: Cli) -> None:
    done = store("task", "publish", "-t", "broken", "-c", "1", "--wait", "20")
    assert (done.code, done.stdout) == (1, "")
    assert "failed at agent 'broken' after 1 attempt: ValueError: my own words" in done.stderr
    (letter,) = store("streams", "dlq", "--topic", "broken", "-f", "json").document()
    assert (letter["error_type"], letter["error"], letter["agent"]) == (
        "ValueError",
        "ValueError: my own words",
        "broken",
    )
    assert "ValueError: my own words" in store("bus", "dlq", "--topic", "broken").stdout
    (stream,) = [one for one in store("streams", "list", "-f", "json").document() if one["topic"] == "broken"]
    assert stream["groups"][0]["dead"] == 1


def test_agents_are_listed_in_every_layout(store: Cli) -> None:
    topics = store("agent", "list", "--format", "json").document()
    assert [agent["name"] for agent in topics["greet.user"]] == ["greeter"]
    for layout in ("tree", "table", "compact"):
        done = store("agent", "list", "--format", layout)
        assert done.code == 0
        assert {"greet.user", "greeter"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("streams", "list"),
        ("agent", "list"),
        ("agent", "list", "-f", "table"),
        ("streams", "list", "-f", "json"),
        ("--help",),
    ],
)
def test_a_command_ends_quietly_when_nobody_reads_it(shared: Path, arguments: tuple[str, ...]) -> None:
    assert into_closed_pipe(shared, *arguments) == Finished(141, "", "")


async def test_a_runner_goes_on_when_nobody_reads_its_notices(folder: Path) -> None:
    async with running(folder, "agents.py", stderr=subprocess.PIPE) as runner:
        assert runner.process.stderr is not None
        await runner.process.stderr.aclose()
        runner.process.send_signal(signal.SIGINT)
        assert await runner.ended() == 0


@pytest.mark.parametrize(
    "arguments", [("agent", "list"), ("streams", "list"), ("streams", "dlq", "-t", "x"), ("bus", "list")]
)
def test_nothing_to_list_is_an_empty_document_and_no_failure(cli: Cli, arguments: tuple[str, ...]) -> None:
    assert cli(*arguments).code == 0
    assert cli(*arguments, "-f", "json").document() in ([], {})


def test_an_unknown_task_exits_1(cli: Cli) -> None:
    done = cli("task", "result", "--task-id", "none", "-f", "json")
    document = done.document()
    assert (done.code, document.pop("places")) == (1, [])
    assert document == {"task_id": "none", "status": "unknown", "result": None, "state": "unknown"}


async def test_a_hangup_stops_in_order_and_hurries_nobody(folder: Path) -> None:
    async with running(folder, "agents.py") as runner:
        published = await command(folder, "task", "publish", "-t", "patient", "-c", "1", "-f", "json")
        await wait_for(folder / "started")
        runner.process.send_signal(signal.SIGHUP)
        await runner.logged("stopping: waiting for 1 running task")
        runner.process.send_signal(signal.SIGHUP)  # as a terminal says it when it is closed
        await trio.sleep(0.1)
        (folder / "go").touch()
        assert await runner.ended() == 0
    done = await command(folder, "task", "result", "--task-id", published.document()["task_id"])
    assert (done.code, done.stdout) == (0, '"finished"\n')


async def test_one_signal_waits_for_the_running_task(folder: Path) -> None:
    async with running(folder, "agents.py") as runner:
        published = await command(folder, "task", "publish", "-t", "patient", "-c", "1", "-f", "json")
        await wait_for(folder / "started")
        runner.process.send_signal(signal.SIGINT)
        await runner.logged("stopping: waiting for 1 running task (patient 1); Ctrl-C again stops at once")
        (folder / "go").touch()
        assert await runner.ended() == 0
    done = await command(folder, "task", "result", "--task-id", published.document()["task_id"])
    assert (done.code, done.stdout) == (0, '"finished"\n')


async def test_a_second_signal_stops_at_once_and_the_task_comes_again(folder: Path) -> None:
    async with running(folder, "agents.py") as runner:
        published = await command(folder, "task", "publish", "-t", "patient", "-c", "1", "-f", "json")
        await wait_for(folder / "started")
        runner.process.send_signal(signal.SIGTERM)
        await runner.logged("stopping")
        runner.process.send_signal(signal.SIGINT)
        assert await runner.ended() == 130
    (folder / "go").touch()
    async with running(folder, "agents.py"):
        done = await command(folder, "task", "result", "--task-id", published.document()["task_id"], "--wait", "20")
    assert (done.code, done.stdout) == (0, '"finished"\n')


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_gateway_on_ipv6_and_behind_a_name(folder: Path, workers: str) -> None:
    options = (
        "--listen",
        "[::1]:0",
        "--allowed-host",
        "omni.lan",
        "--allowed-host",
        "omni_watch",
        "--workers",
        workers,
    )
    async with running(folder, "agents.py", *options) as runner:
        url = runner.document["gateway"]
        assert url.startswith("http://[::1]:")
        async with httpx.AsyncClient(trust_env=False) as client:
            hosts = ("omni.lan", "omni_watch:80", url.removeprefix("http://").rstrip("/"), "evil.example")
            found = [(await client.get(url, headers={"host": host})).status_code for host in hosts]
        assert found == [200, 200, 200, 403]
        for given in (url, url.rstrip("/")):
            async with started(folder, "watch", "--url", given, "--types", "task.published", "-f", "json") as watch:
                await watch.logged("watching [::1]:")
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.ended() == 0


async def test_watch_finds_the_gateway_by_itself_and_ends_with_it(folder: Path) -> None:
    async with running(folder, "agents.py", OMNIACTORS_TOKEN="s3cret") as runner:
        refused = await command(folder, "watch", "--token", "wrong")
        assert (refused.code, refused.stdout) == (3, "")
        assert "it wants another token" in refused.stderr

        async with started(
            folder, "watch", "--types", "task.completed", "-f", "json", OMNIACTORS_TOKEN="s3cret"
        ) as watch:
            await watch.logged("watching 127.0.0.1:")
            await command(folder, "task", "publish", "-t", "void", "-c", "1", "--wait", "20")
            runner.process.send_signal(signal.SIGINT)
            assert await runner.ended() == 0
            assert await watch.ended() == 0
            await watch.logged("the stream ended")
            assert watch.process.stdout is not None
            event = json.loads(await watch.process.stdout.receive_some())
    assert (event["event_type"], event["data"]["agent"]) == ("task.completed", "void")


async def test_a_busy_port_exits_3(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = await command(folder, "run", "agents.py", "--listen", f"127.0.0.1:{port}")
    assert (done.code, done.stdout) == (3, "")
    store, sentence = done.stderr.splitlines()
    assert store.startswith("omniactors: sqlite:///")
    assert sentence.startswith(f"error: cannot listen on 127.0.0.1:{port}")


def test_a_file_that_is_no_database_exits_3_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are my notes, and no database at all" * 50)
    before = (tmp_path / "notes.txt").read_bytes()
    done = omniactors(tmp_path, "task", "publish", "-t", "t", "-c", "1", OMNIACTORS_URL="sqlite:///notes.txt")
    assert (done.code, done.stdout) == (3, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "notes.txt").read_bytes() == before


@pytest.mark.parametrize(("topic", "sentence"), [(" ", "non-empty"), ("omni.webhook", "reserved"), ("a:dlq", "dlq")])
def test_a_topic_that_cannot_be_is_a_usage_error(cli: Cli, topic: str, sentence: str) -> None:
    done = cli("task", "publish", "--topic", topic, "--content", "1")
    assert (done.code, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_watch_without_a_runner_exits_3(cli: Cli) -> None:
    done = cli("watch")
    assert (done.code, done.stdout) == (3, "")
    assert "no running system" in done.stderr
