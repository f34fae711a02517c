"""The user that docs/operations.md sets up: it may do all that a system needs, and nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import redis
import trio

from omniactors import Agent, EventEnvelope, OmniActors
from tests.redis_server import RedisServer
from tests.source import ROOT
from tests.streams.redis_tour import Tour

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = "correct-horse"


class Echo(Agent, topic="echo", name="echo", key="who", limit=10):
    async def handle(self, event: EventEnvelope[dict[str, str]]) -> str:
        return event.payload.content["who"]


def documented_user() -> list[str]:
    """The words of the command in the document."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```text\n(ACL SETUSER omniactors .*?)```", text, re.DOTALL)
    return str(command).replace("PASSWORD", PASSWORD).replace("\\\n", " ").split()


def granted() -> set[str]:
    """The commands that the document grants."""
    return {word[1:] for word in documented_user() if word.startswith("+")}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        server.command(*documented_user())
        server.command("CONFIG", "RESETSTAT")
        yield server


@pytest.fixture
def url(server: RedisServer) -> str:
    return f"redis://omniactors:{PASSWORD}@127.0.0.1:{server.port}/0"


def refused(server: RedisServer) -> list[str]:
    """What the user was refused; the library that holds the lease tells its name, and does without."""
    with server.sync() as client:
        log = [entry["object"] for entry in client.acl_log()]
    return [what for what in log if what not in {"client|setinfo", "client"}]


def used(server: RedisServer) -> set[str]:
    """The commands that were carried out, inside of scripts too."""
    with server.sync() as client:
        stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_") for name, counts in stats.items() if counts["calls"]}


def test_everything_is_allowed_and_nothing_is_allowed_in_vain(server: RedisServer, url: str) -> None:
    trio.run(Tour(url, "").take)
    assert refused(server) == []
    # INFO, which asks for this, is one that the doctor needs too. A server before 7.0 does not count by second words.
    done = used(server) - {"auth", "config", "config|resetstat", "acl", "acl|setuser", "acl|log"}
    is_counted_by_parts = any("|" in name for name in done)
    allowed = {name if is_counted_by_parts else name.partition("|")[0] for name in granted()}
    assert done == allowed


async def test_agents_run_as_that_user(server: RedisServer, url: str) -> None:
    omni = OmniActors(url)
    omni.add(Echo)
    with trio.fail_after(20):
        async with omni:
            assert await omni.wait_result(await omni.publish("echo", {"who": "Alice"})) == "Alice"
            assert [finding.check for finding in await omni.doctor() if finding.status == "error"] == ["persistence"]
    assert refused(server) == []


@pytest.mark.parametrize(
    "words",
    [("GET", "another"), ("XADD", "stream", "*", "f", "v"), ("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*")],
    ids=" ".join,
)
def test_it_may_do_nothing_else(url: str, words: tuple[str, ...]) -> None:
    with redis.Redis.from_url(url, protocol=2) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*words)
