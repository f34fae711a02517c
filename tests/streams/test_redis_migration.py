"""What docs/migration.md says about a group that another program has made, and left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import redis
import trio

from omniactors import StreamFull
from omniactors.streams.backend import Want
from omniactors.streams.redis.backend import RedisBackend
from tests.redis_server import RedisServer
from tests.streams.contract_kit import AGENT, TOPIC, done, event, next_fetch, numbered, numbers, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
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
