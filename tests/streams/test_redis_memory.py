"""Memory that is full: publishers are refused with one sentence, and all that drains it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from omniactors import Agent, BackendError, EventEnvelope, OmniActors
from omniactors.streams.redis.backend import RedisBackend
from tests.redis_server import RedisServer
from tests.streams.contract_kit import event, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEASE = 0.5
BACKLOG = 50


class Keeper(Agent, topic="work", name="keeper"):
    async def handle(self, event: EventEnvelope[int]) -> int:
        return event.payload.content


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


def fill(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "maxmemory", "100kb")


async def test_a_publisher_is_told_in_one_sentence(server: RedisServer) -> None:
    fill(server)
    backend = RedisBackend(server.url)
    with pytest.raises(BackendError, match=r"no memory left \(maxmemory is reached\): nothing was written") as caught:
        await backend.publish([event("1")])
    assert caught.value.outcome_known
    await backend.close()


async def test_a_lease_is_renewed(server: RedisServer) -> None:
    backend = RedisBackend(server.url, lease=LEASE)
    async with serving(backend) as consumer:
        fill(server)
        await trio.sleep(3 * LEASE)  # of the lease's own thread
        assert [runtime.consumer for runtime in await backend.runtimes()] == [consumer]
    await backend.close()


async def test_a_process_that_starts_then_drains_what_is_there(server: RedisServer) -> None:
    publisher = OmniActors(server.url)
    ids = await publisher.publish_batch([("work", number) for number in range(BACKLOG)])
    fill(server)
    omni = OmniActors(server.url)
    omni.add(Keeper)
    with trio.fail_after(20):
        async with omni:
            assert [await omni.wait_result(task_id) for task_id in ids] == list(range(BACKLOG))
            assert [agent.name for agent in await omni.agents.list()] == ["keeper"]
    await publisher.shutdown()
