"""What docs/migration.md and docs/operations.md say about groups that another program has made, or left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import redis
import trio

from omniactors import StreamFull
from omniactors.streams.backend import AgentRecord, DeadFilter, Want
from omniactors.streams.redis.backend import RedisBackend
from omniactors.streams.settlement import Retry
from tests.redis_server import RedisServer
from tests.streams.contract_kit import (
    AGENT,
    TOPIC,
    dead,
    done,
    event,
    eventually,
    fetch,
    next_fetch,
    numbered,
    numbers,
    serving,
    settle_all,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

LEASE = 0.5
STREAM = f"omni-stream:{TOPIC}"
GROUP = f"group:{TOPIC}:{AGENT}"
THEIRS = f"consumer:{AGENT}-1"
WANT = Want(TOPIC, AGENT, 9)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    """The other program's connection, and its group."""
    with redis.Redis.from_url(server.url, protocol=2) as client:
        client.xgroup_create(STREAM, GROUP, "$", mkstream=True)
        yield client


def read(raw: redis.Redis, consumer: str, count: int) -> None:
    raw.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=count)


async def test_work_of_a_process_of_ours_that_died_is_taken_over_in_its_group_too(
    server: RedisServer, raw: redis.Redis
) -> None:
    backend = RedisBackend(server.url, lease=LEASE)
    await backend.create_groups([(TOPIC, AGENT)])
    await backend.publish(numbered(2))
    raw.hset("omni-consumers", "ghost", json.dumps({"consumer": "ghost", "pid": 1, "host": "h", "started_at": 1.0}))
    read(raw, "ghost", 1)
    with trio.fail_after(20):
        async with serving(backend):
            (fresh,) = (await next_fetch(backend, WANT)).entries
            (orphan,) = (await next_fetch(backend, WANT)).entries
            assert numbers([fresh, orphan]) == [1, 0]
            assert (await backend.metrics())[0].agent == AGENT
    await backend.close()


async def test_what_its_consumer_left_is_taken_over_once_it_is_named(server: RedisServer, raw: redis.Redis) -> None:
    backend = RedisBackend(server.url, lease=LEASE)
    await backend.create_groups([(TOPIC, AGENT)])
    await backend.publish(numbered(2))
    read(raw, THEIRS, 2)
    with trio.fail_after(20):
        async with serving(backend):
            assert (await backend.fetch([WANT])).entries == []
            raw.hset("omni-consumers", THEIRS, "{}")
            left = (await next_fetch(backend, WANT)).entries
            assert numbers(left) == [0, 1]
            assert all(await backend.settle_many([done(entry) for entry in left]))
            assert raw.hexists("omni-consumers", THEIRS) is False
    await backend.close()


async def test_a_stream_that_only_others_read_is_trimmed_at_its_limit(server: RedisServer, raw: redis.Redis) -> None:
    backend = RedisBackend(server.url, stream_limit=10)
    await backend.publish(numbered(10))
    with pytest.raises(StreamFull):
        await backend.publish([event("more")])
    read(raw, THEIRS, 6)
    held = raw.xpending_range(STREAM, GROUP, "-", "+", 6)
    raw.xack(STREAM, GROUP, *[entry["message_id"] for entry in held])
    await backend.publish([event("more")])
    assert raw.xlen(STREAM) == 5
    await backend.close()


async def test_an_agent_that_is_deleted_lets_its_stream_go_and_leaves_nothing_but_dead_letters(
    server: RedisServer, raw: redis.Redis
) -> None:
    backend = RedisBackend(server.url, lease=LEASE)
    await backend.save_agents([AgentRecord(topic=TOPIC, name="gone"), AgentRecord(topic=TOPIC, name=AGENT)])
    await backend.create_groups([(TOPIC, "gone"), (TOPIC, AGENT)])
    await backend.publish(numbered(5))
    with trio.fail_after(20):
        async with serving(backend):
            first, second, third = await fetch(backend, 3, agent="gone")
            await settle_all(backend, [first])
            await settle_all(backend, [second], retry=Retry(after=3600, attempts=1))
            await settle_all(backend, [third], dead=dead())
        async with serving(backend):
            await settle_all(backend, await fetch(backend))
            assert raw.xlen(STREAM) == 3
            await backend.delete_groups([(TOPIC, "gone")])
            await eventually(_is_empty(raw))
            (stream,) = await backend.streams()
            assert [group.agent for group in stream.groups] == [AGENT]
            assert [agent.name for agent in await backend.list_agents()] == [AGENT]
            # Its dead letters are kept: they are somebody's work that was not done.
            assert raw.keys("*gone*") == [b"omni-dlq:group:work:gone"]
            assert await backend.purge_dead(TOPIC, DeadFilter(agent="gone"), limit=9) == 1
            await backend.delete_groups([(TOPIC, "gone")])
            assert raw.keys("*gone*") == []
            assert b"group:work:gone" not in raw.smembers("omni-groups")
    await backend.close()


def _is_empty(raw: redis.Redis) -> Callable[[], Awaitable[bool]]:
    async def is_empty() -> bool:
        return raw.xlen(STREAM) == 0

    return is_empty
