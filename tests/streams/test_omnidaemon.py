"""OmniDaemon and we on one Redis: each one's publishers feed the other's agents.

What OmniDaemon writes stands here byte for byte, as version 0.1.1 wrote it. The tests at the end run the
real package, when this Python has it or OMNIDAEMON_PYTHON names one that does.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import Agent, EventEnvelope, OmniActors
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

LIMIT = 20.0
"""Seconds of real time after which a wait for another process has failed."""
PYTHON = os.environ.get("OMNIDAEMON_PYTHON", sys.executable)
PROGRAM = Path(__file__).with_name("omnidaemon_program.py")

TEXT = (
    b'{"content": "list_files", "webhook": null, "reply_to": null, "topic": "work", "task_id": "t1", '
    b'"correlation_id": null, "causation_id": null, "source": null, "delivery_attempts": 1, '
    b'"created_at": 1795302442.6990528}'
)
OBJECT = (
    b'{"content": {"path": "/tmp", "n": [1, 2.5, null, true], "\\u00fc": "\\u65e5\\u672c"}, "webhook": null, '
    b'"reply_to": "answers", "topic": "work", "task_id": "t2", "correlation_id": "c-1", "causation_id": "k-1", '
    b'"source": "web-api", "delivery_attempts": 1, "created_at": 1795302442.701099}'
)
LIST = TEXT.replace(b'"list_files"', b'["a", {"b": 1}]')
EMPTY = TEXT.replace(b'"list_files"', b'""').replace(b"null", b'""', 2)
"""A form that was sent with its fields left empty: no webhook, no reply."""
BARE = (
    b'{"content": "raw", "webhook": null, "reply_to": null, "topic": "work", "task_id": null, '
    b'"correlation_id": null, "causation_id": null, "source": null, "delivery_attempts": 0, '
    b'"created_at": 1795302442.7030911}'
)
"""What its bus writes when it is used without its SDK."""
NOTHING = BARE.replace(b'"raw"', b"null").replace(b'"task_id": null', b'"task_id": "t8"')
UNKNOWN = TEXT.replace(b"{", b'{"priority": 7, "tags": {"a": [1]}, ', 1)
DEAD = json.dumps(
    {
        "topic": "work",
        "original_stream": "omni-stream:work",
        "original_id": "1795302442700-0",
        "failed_message": json.loads(OBJECT) | {"delivery_attempts": 4},
        "error": "Max retries (4) exceeded",
        "retry_count": 3,
        "failed_at": 1795302999.25,
    }
).encode()
"""What it puts into its dead letters, whatever the error was."""

FIELDS: dict[str, tuple[type, ...]] = {
    "content": (str, dict, list),
    "webhook": (str, type(None)),
    "reply_to": (str, type(None)),
    "topic": (str,),
    "task_id": (str,),
    "correlation_id": (str, type(None)),
    "causation_id": (str, type(None)),
    "source": (str, type(None)),
    "delivery_attempts": (int,),
    "created_at": (float,),
}
"""What its consumer reads of an entry: `delivery_attempts` without asking whether it is there."""


class Keeper(Agent, topic="work", name="keeper"):
    """Keeps what it gets, and gives back the content."""

    def __init__(self, seen: list[EventEnvelope[Any]]) -> None:
        self.seen = seen

    async def handle(self, event: EventEnvelope[Any]) -> Any:
        self.seen.append(event)
        return event.payload.content


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("omnidaemon")) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """An empty server: OmniDaemon's keys have no prefix that could keep tests apart."""
    shared_server.command("FLUSHALL")
    return shared_server


@asynccontextmanager
async def keeping(server: RedisServer, **keywords: Any) -> AsyncIterator[tuple[OmniActors, list[EventEnvelope[Any]]]]:
    """Ours with a Keeper at work on that server, and what the Keeper has got."""
    seen: list[EventEnvelope[Any]] = []
    omni = OmniActors(server.url)
    omni.add(Keeper, seen, **keywords)
    with trio.fail_after(LIMIT):
        async with omni:
            yield omni, seen


def add(server: RedisServer, body: bytes, key: str = "omni-stream:work") -> str:
    """Append an entry as OmniDaemon does; returns its id."""
    with server.sync() as client:
        return str(client.xadd(key, {"data": body}, maxlen=10_000, approximate=True).decode())


async def until(condition: Any) -> None:
    """Wait for what another process brings about."""
    with trio.fail_after(LIMIT):
        while not condition():  # noqa: ASYNC110 -- another process is at work, and tells nobody
            await trio.sleep(0.01)


# -- its entries, our agents --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content", "task_id"),
    [
        pytest.param(TEXT, "list_files", "t1", id="text"),
        pytest.param(OBJECT, {"path": "/tmp", "n": [1, 2.5, None, True], "ü": "日本"}, "t2", id="object"),
        pytest.param(LIST, ["a", {"b": 1}], "t1", id="list"),
        pytest.param(EMPTY, "", "t1", id="empty"),
        pytest.param(NOTHING, None, "t8", id="nothing"),
        pytest.param(UNKNOWN, "list_files", "t1", id="unknown fields"),
    ],
)
async def test_what_it_wrote_is_handled(server: RedisServer, body: bytes, content: Any, task_id: str) -> None:
    add(server, body)
    async with keeping(server) as (omni, seen):
        assert await omni.wait_result(task_id) == content
    (event,) = seen
    assert (event.id, event.topic, event.payload.content) == (task_id, "work", content)
    assert event.delivery_attempts == 1
    assert event.tenant_id is None
    assert event.created_at == json.loads(body)["created_at"]


async def test_ids_and_the_way_of_a_reply_are_kept(server: RedisServer) -> None:
    add(server, OBJECT)
    async with keeping(server) as (omni, seen):
        content = await omni.wait_result("t2")
    (event,) = seen
    assert (event.correlation_id, event.causation_id, event.source) == ("c-1", "k-1", "web-api")
    (reply,) = entries(server, "answers")
    assert reply["content"] == content
    assert (reply["correlation_id"], reply["causation_id"]) == ("c-1", "t2")


async def test_an_entry_without_a_task_id_has_the_same_one_at_every_delivery(server: RedisServer) -> None:
    entry_id = add(server, BARE)
    async with keeping(server) as (omni, seen):
        assert await omni.wait_result(f"work:{entry_id}") == "raw"
    assert [event.id for event in seen] == [f"work:{entry_id}"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(TEXT.replace(b'"list_files"', b"NaN"), id="NaN"),
        pytest.param(TEXT.replace(b'"list_files"', b'"\\ud800"'), id="half a character"),
        pytest.param(TEXT.replace(b"1795302442.6990528", b'"yesterday"'), id="a time in words"),
        pytest.param(TEXT.replace(b'"t1"', b"10"), id="a number as id"),
        pytest.param(TEXT.replace(b'"webhook": null', b'"webhook": "example.com/hook"'), id="no URL"),
        pytest.param(b"hello", id="no JSON"),
        pytest.param(b"\xff\xfe", id="no text"),
    ],
)
async def test_what_nobody_can_read_is_dead_lettered_with_its_bytes(server: RedisServer, body: bytes) -> None:
    add(server, body)
    add(server, OBJECT)
    async with keeping(server) as (omni, seen):
        await omni.wait_result("t2")
        (letter,) = await omni.streams.dlq("work")
    assert letter.reason == "decode"
    assert letter.body.encode() == body if letter.body_encoding == "utf-8" else letter.body_encoding == "base64"
    assert [event.id for event in seen] == ["t2"]


async def test_an_entry_without_the_field_is_dead_lettered(server: RedisServer) -> None:
    server.command("XADD", "omni-stream:work", "*", "other", "1")
    add(server, OBJECT)
    async with keeping(server) as (omni, seen):
        await omni.wait_result("t2")
        (letter,) = await omni.streams.dlq("work")
    assert letter.reason == "decode"
    assert [event.id for event in seen] == ["t2"]


async def test_a_group_that_it_made_is_taken_on_where_it_stands(server: RedisServer) -> None:
    add(server, TEXT)
    server.command("XGROUP", "CREATE", "omni-stream:work", "group:work:keeper", "$")  # as it does: the first is lost
    add(server, OBJECT)
    async with keeping(server) as (omni, seen):
        await omni.wait_result("t2")
    assert [event.id for event in seen] == ["t2"]


async def test_a_group_of_ours_starts_with_what_is_there(server: RedisServer) -> None:
    add(server, TEXT)
    async with keeping(server) as (omni, _):
        assert await omni.wait_result("t1") == "list_files"


async def test_what_its_consumers_hold_stays_theirs(server: RedisServer) -> None:
    """It has no leases: for a long time nobody can tell whether they still work on it. It is to be seen as pending."""
    server.command("XGROUP", "CREATE", "omni-stream:work", "group:work:keeper", "0", "MKSTREAM")
    add(server, TEXT)
    consumer = "consumer:keeper-1"
    server.command("XREADGROUP", "GROUP", "group:work:keeper", consumer, "STREAMS", "omni-stream:work", ">")
    add(server, OBJECT)
    async with keeping(server) as (omni, seen):
        await omni.wait_result("t2")
        (group,) = next(stream for stream in await omni.streams.list() if stream.topic == "work").groups
    assert [event.id for event in seen] == ["t2"]
    assert (group.agent, group.pending, group.waiting) == ("keeper", 1, 0)


async def test_an_agent_of_a_new_name_gets_what_others_have_done_long_ago(server: RedisServer) -> None:
    """It never deletes what is done, so a stream of its own still holds thousands of old events."""
    server.command("XGROUP", "CREATE", "omni-stream:work", "group:work:theirs", "0", "MKSTREAM")
    entry_id = add(server, TEXT)
    server.command("XREADGROUP", "GROUP", "group:work:theirs", "consumer:theirs-1", "STREAMS", "omni-stream:work", ">")
    server.command("XACK", "omni-stream:work", "group:work:theirs", entry_id)
    async with keeping(server) as (omni, _):
        assert await omni.wait_result("t1") == "list_files"


# -- our entries, as its consumer reads them ------------------------------------------------------


def entries(server: RedisServer, topic: str) -> list[dict[str, Any]]:
    """What stands in the stream of a topic, read as OmniDaemon reads it."""
    with server.sync() as client:
        found = [fields for _, fields in client.xrange(f"omni-stream:{topic}")]
    assert all(list(fields) == [b"data"] for fields in found)
    return [json.loads(fields[b"data"]) for fields in found]


@pytest.mark.parametrize("content", ["text", {"a": [1, 2.5, None]}, ["ü", "日本"]])
async def test_our_entries_have_what_its_consumer_reads(server: RedisServer, content: Any) -> None:
    omni = OmniActors(server.url)
    given: dict[str, Any] = {"reply_to": "answers", "webhook": "http://127.0.0.1:9/hook", "correlation_id": "c"}
    task_id = await omni.publish("work", content, causation_id="k", tenant_id="acme", source="s", **given)
    await omni.publish("work", content)
    await omni.shutdown()
    full, least = entries(server, "work")
    for entry in (full, least):
        assert {name: type(entry[name]) for name in FIELDS if not isinstance(entry[name], FIELDS[name])} == {}
        assert entry["delivery_attempts"] == 1
        assert math.isclose(entry["created_at"], time.time(), abs_tol=LIMIT)
    assert full.items() >= (given | {"content": content, "topic": "work", "task_id": task_id}).items()
    assert (full["causation_id"], full["tenant_id"], full["source"]) == ("k", "acme", "s")


# -- its dead letters -----------------------------------------------------------------------------


async def test_its_dead_letters_are_listed(server: RedisServer) -> None:
    server.command("XGROUP", "CREATE", "omni-stream:work", "group:work:keeper", "$", "MKSTREAM")
    entry_id = add(server, DEAD, "omni-dlq:group:work:keeper")
    omni = OmniActors(server.url)
    (letter,) = await omni.streams.dlq("work")
    await omni.shutdown()
    assert (letter.id, letter.topic, letter.agent) == (entry_id, "work", "keeper")
    assert (letter.original_stream, letter.original_id) == ("omni-stream:work", "1795302442700-0")
    assert letter.failed_message["content"] == json.loads(OBJECT)["content"]
    assert (letter.error, letter.retry_count, letter.failed_at) == ("Max retries (4) exceeded", 3, 1795302999.25)
    assert (letter.reason, letter.error_type, letter.traceback) == ("handler-error", "", "")


async def test_its_dead_letters_can_be_replayed_to_our_agent(server: RedisServer) -> None:
    server.command("XGROUP", "CREATE", "omni-stream:work", "group:work:keeper", "$", "MKSTREAM")
    add(server, DEAD, "omni-dlq:group:work:keeper")
    async with keeping(server) as (omni, seen):
        assert await omni.streams.replay("work") == 1
        assert await omni.wait_result("t2") == json.loads(OBJECT)["content"]
        assert await omni.streams.dlq("work") == []
    assert [event.delivery_attempts for event in seen] == [1]


# -- the real package -----------------------------------------------------------------------------


@functools.cache
def has_omnidaemon() -> bool:
    """Whether that Python has it. It is not imported: that would leave a folder behind."""
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('omnidaemon') is None)"
    try:
        probe = subprocess.run([PYTHON, "-c", question], capture_output=True, timeout=LIMIT, check=False)
    except OSError:
        return False
    return probe.returncode == 0


@pytest.fixture
def _real() -> None:
    if not has_omnidaemon():
        pytest.skip("omnidaemon is not installed: see OMNIDAEMON_PYTHON")


class Program:
    """The real OmniDaemon at work in another process; what it told so far is in `lines`."""

    def __init__(self, output: Path, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._output = output

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self._output.read_text().splitlines()]

    def finish(self, text: str = "") -> list[Any]:
        """Give it its input, wait for its end, and give back what it told."""
        self.process.communicate(text, timeout=LIMIT)
        assert self.process.returncode == 0
        return self.lines


@contextmanager
def program(folder: Path, *arguments: str) -> Iterator[Program]:
    output = folder / f"{arguments[0]}.jsonl"
    with output.open("w") as file, (folder / "omnidaemon.log").open("w") as log:
        process = subprocess.Popen(
            [PYTHON, str(PROGRAM), *arguments], stdin=subprocess.PIPE, stdout=file, stderr=log, text=True, cwd=folder
        )
        try:
            yield Program(output, process)
        finally:
            process.kill()
            process.communicate()


@pytest.mark.usefixtures("_real")
async def test_the_real_publisher_feeds_our_agents(server: RedisServer, tmp_path: Path) -> None:
    tasks: list[dict[str, Any]] = [
        {"id": "a", "payload": {"content": "text", "webhook": ""}},
        {"id": "b", "payload": {"content": {"x": ["日本", 1.5]}, "reply_to": "answers"}, "correlation_id": "c"},
        {"id": "c", "payload": {"content": [1, None]}, "source": "web", "tenant_id": "lost", "created_at": 1.0},
    ]
    async with keeping(server) as (omni, seen):
        with program(tmp_path, "publish", server.url, "work") as theirs:
            told = await trio.to_thread.run_sync(theirs.finish, "\n".join(json.dumps(task) for task in tasks))
        assert told == ["a", "b", "c"]
        for task in tasks:
            assert await omni.wait_result(task["id"]) == task["payload"]["content"]
    assert [event.id for event in seen] == ["a", "b", "c"]
    assert seen[1].correlation_id == "c"
    # It loses these two before they reach the stream.
    assert seen[2].tenant_id is None
    assert seen[2].created_at > 1.0


@pytest.mark.usefixtures("_real")
async def test_our_publisher_feeds_the_real_agent_and_gets_its_reply(server: RedisServer, tmp_path: Path) -> None:
    with program(tmp_path, "serve", server.url, "work") as theirs:
        await until(lambda: theirs.lines)
        async with keeping(server, topic="answers") as (omni, seen):
            task_id = await omni.publish("work", {"x": ["日本", 1.5]}, reply_to="answers", correlation_id="c")
            await until(lambda: seen)
    message = theirs.lines[1]
    assert message["content"] == {"x": ["日本", 1.5]}
    assert (message["task_id"], message["topic"], message["tenant_id"]) == (task_id, "work", None)
    (reply,) = seen
    assert reply.payload.content == {"echo": {"x": ["日本", 1.5]}}
    assert (reply.correlation_id, reply.causation_id) == ("c", task_id)


@pytest.mark.usefixtures("_real")
async def test_both_on_one_topic_get_everything(server: RedisServer, tmp_path: Path) -> None:
    with program(tmp_path, "serve", server.url, "work") as theirs:
        await until(lambda: theirs.lines)
        async with keeping(server) as (omni, seen):
            ids = await omni.publish_batch([("work", [number]) for number in range(20)])
            await until(lambda: len(theirs.lines) == 21 and len(seen) == 20)
    assert [event.id for event in seen] == ids
    assert sorted(message["task_id"] for message in theirs.lines[1:]) == sorted(ids)


@pytest.mark.usefixtures("_real")
async def test_a_replay_reaches_our_agent_alone(server: RedisServer, tmp_path: Path) -> None:
    add(server, DEAD, "omni-dlq:group:work:keeper")
    with program(tmp_path, "serve", server.url, "work") as theirs:
        await until(lambda: theirs.lines)
        async with keeping(server) as (omni, seen):
            assert await omni.streams.replay("work") == 1
            await omni.wait_result("t2")
            await omni.publish("work", "next")
            await until(lambda: len(theirs.lines) == 2)
    assert seen[0].id == "t2"
    assert theirs.lines[1]["content"] == "next"


@pytest.mark.usefixtures("_real")
async def test_a_dead_letter_of_the_real_agent_is_listed(server: RedisServer, tmp_path: Path) -> None:
    omni = OmniActors(server.url)
    with program(tmp_path, "fail", server.url, "work") as theirs:
        await until(lambda: theirs.lines)
        task_id = await omni.publish("work", "bad")
        await until(lambda: server.command("EXISTS", "omni-dlq:group:work:theirs"))
    (letter,) = await omni.streams.dlq("work")
    await omni.shutdown()
    assert (letter.agent, letter.error, letter.retry_count) == ("theirs", "Max retries (2) exceeded", 1)
    assert (letter.failed_message["task_id"], letter.failed_message["content"]) == (task_id, "bad")
    assert letter.reason == "handler-error"
