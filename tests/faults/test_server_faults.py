"""What is done to a Redis that goes on running: connections killed, scripts and data gone, memory full."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.faults.scene import SLOW, client
from tests.faults.test_kills import finish, start_load

if TYPE_CHECKING:
    import random

    from tests.faults.scene import Program, Scene
    from tests.redis_server import RedisServer

ROUNDS = 20 if SLOW else 2

TASKS_A_ROUND = 60


async def begin(scene: Scene, *, workers: int = 1) -> Program:
    """Workers and a publisher at work; returns the publisher."""
    programs = [scene.worker(f"w{number}", is_chained=True) for number in range(workers)]
    publisher = start_load(scene, "p")
    await scene.up(*programs, publisher)
    await scene.handled(TASKS_A_ROUND)
    return publisher


async def test_client_kill_of_every_connection(server: RedisServer, scene: Scene, chance: random.Random) -> None:
    publisher = await begin(scene)
    for _ in range(ROUNDS):
        server.command("CLIENT", "KILL", "TYPE", "normal")
        await scene.handled_more(TASKS_A_ROUND)
        await trio.sleep(chance.uniform(0, 0.05))
    report = await finish(scene, publisher)
    # Connections come back long before a lease ends: whatever was in hand stays in hand.
    assert not report.repetitions


async def test_script_flush(server: RedisServer, scene: Scene) -> None:
    publisher = await begin(scene)
    for _ in range(ROUNDS):
        server.command("SCRIPT", "FLUSH")
        await scene.handled_more(TASKS_A_ROUND)
    report = await finish(scene, publisher)
    assert not report.repetitions
    assert not report.unknown


async def test_groups_that_are_destroyed_come_back(server: RedisServer, scene: Scene) -> None:
    publisher = await begin(scene)
    for _ in range(ROUNDS):
        with scene.fault("regroup", echo=0.5):
            server.command("XGROUP", "DESTROY", "omni-stream:work", "group:work:worker")
        await scene.handled_more(TASKS_A_ROUND)
    await finish(scene, publisher)


async def test_a_flush_loses_what_it_flushed_and_all_goes_on(server: RedisServer, scene: Scene) -> None:
    publisher = await begin(scene, workers=2)
    for number in range(ROUNDS):
        with scene.fault("flush", echo=0.5):
            server.command("FLUSHALL")
        await scene.handled_more(TASKS_A_ROUND)
        # A task that was acknowledged from now on is not forgotten: the flush is over.
        await scene.until(lambda: "omni-agents" in keys(server), f"the registry is back after flush {number}")
    report = await finish(scene, publisher)
    assert len(report.ended) > ROUNDS * TASKS_A_ROUND // 2
    async with client(scene.url) as omni:
        assert {agent.name for agent in await omni.agents.list()} == {"worker", "follower"}
        assert len(await omni.runtimes()) == 2
    for program in scene.programs[:2]:
        assert "ERROR" in program.stderr
        assert "was flushed" in program.stderr, program.stderr


def keys(server: RedisServer) -> str:
    """The names of all keys, as one text."""
    found = server.command("KEYS", "*")
    assert isinstance(found, list)
    return "\n".join(name.decode() for name in found)


async def test_full_memory_stops_publishers_with_one_clear_error_and_consumers_drain(
    server: RedisServer, scene: Scene
) -> None:
    worker = scene.worker("w")
    await scene.up(worker)
    async with client(scene.url) as omni:
        await omni.agents.pause("worker")
        publisher = scene.publisher("p", task={"seconds": 0.001}, is_stubborn=True)
        await scene.until(lambda: len(scene.ids("ok")) >= 200, "200 published")
        server.command("CONFIG", "SET", "maxmemory", "1mb")
        await scene.until(lambda: len(scene.ids("fail", "unknown")) >= 1, "a publisher is refused")
        await scene.until(lambda: "memory" in publisher.stderr, "it says why")
        assert "script" not in publisher.stderr, "how we talk to Redis is not the user's matter"
        assert not scene.ids("unknown")
        # Memory stays full, and all the same the work is done: settling needs no room.
        await omni.agents.resume("worker")
        await scene.until(lambda: scene.ids("ok") <= scene.ids("commit"), "the backlog is worked off")
        server.command("CONFIG", "SET", "maxmemory", "0")
        await scene.handled_more(50)
    report = await finish(scene, publisher)
    assert not report.repetitions


@pytest.mark.slow  # ten seconds: Redis tries to save every five, and publishers are patient for five
async def test_a_disk_that_cannot_be_written_stops_publishers_until_it_can(server: RedisServer, scene: Scene) -> None:
    publisher = await begin(scene)
    # MISCONF: a snapshot is due, and its folder cannot be written.
    server.command("CONFIG", "SET", "stop-writes-on-bgsave-error", "yes")
    server.command("CONFIG", "SET", "save", "1 1")
    server.folder.joinpath("dump.rdb").mkdir()
    try:
        await scene.until(lambda: bool(scene.ids("fail", "unknown")), "a publisher is refused", seconds=20)
        await scene.until(lambda: "MISCONF" in publisher.stderr, "it says why")
    finally:
        server.folder.joinpath("dump.rdb").rmdir()
        server.command("CONFIG", "SET", "save", "")
        server.command("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
    await scene.handled_more(TASKS_A_ROUND)
    report = await finish(scene, publisher)
    assert not report.repetitions
