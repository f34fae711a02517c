"""kill -9 and SIGSTOP of Redis, of workers and of publishers, at random moments under load."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Literal

import pytest
import trio

from tests.faults.scene import LONG_LEASE, SLOW, client, leftovers, open_scene, works_again
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.faults.checker import Report
    from tests.faults.scene import Program, Scene

ROUNDS = 8 if SLOW else 1

TASKS_A_ROUND = 200 if SLOW else 80


def start_load(scene: Scene, name: str) -> Program:
    """A publisher that keeps a worker busy."""
    return scene.publisher(name, pause=0.002, task={"seconds": 0.03})


async def finish(scene: Scene, *publishers: Program) -> Report:
    """Let the publishers end, have everything worked off, and check."""
    for publisher in publishers:
        await scene.stop(publisher)
    report = await scene.settled()
    print(report.summary())  # noqa: T201 -- the numbers are what a long run is for
    report.verify()
    return report


async def restart(server: RedisServer, scene: Scene) -> None:
    with scene.fault("store down", echo=scene.lease):
        server.kill()
        await trio.to_thread.run_sync(server.start)


@pytest.mark.parametrize("fsync", ["always", "everysec"])
async def test_kill_9_of_redis(fsync: Literal["always", "everysec"], tmp_path: Path, chance: random.Random) -> None:
    with (
        RedisServer(tmp_path / "redis", appendonly=fsync) as server,
        open_scene(tmp_path / "scene", server.url, lease=LONG_LEASE) as scene,
    ):
        workers = [scene.worker(f"w{number}", is_chained=True) for number in range(2)]
        publishers = [start_load(scene, f"p{number}") for number in range(2 if SLOW else 1)]
        await scene.up(*workers, *publishers)
        for _ in range(ROUNDS + 1):
            await scene.handled_more(TASKS_A_ROUND)
            await trio.sleep(chance.uniform(0, 0.1))
            await restart(server, scene)
        await scene.handled_more(TASKS_A_ROUND)
        report = await finish(scene, *publishers)
        assert len(report.acknowledged) >= ROUNDS * TASKS_A_ROUND // 2
        # It is back long before a lease ends: whatever was in hand stayed there.
        assert not report.repetitions
        for worker in workers:
            await scene.stop(worker)
        assert leftovers(server) == []


async def test_kill_9_of_workers_and_publishers(brief: Scene, chance: random.Random) -> None:
    workers = [brief.worker(f"w{number}", is_chained=True) for number in range(2)]
    publisher = start_load(brief, "p")
    await brief.up(*workers, publisher)
    for number in range(ROUNDS):
        victim = workers.pop(0)
        workers.append(brief.worker(f"w{number + 2}", is_chained=True))
        await brief.handled_more(TASKS_A_ROUND)
        await trio.sleep(chance.uniform(0, 0.1))
        brief.kill(victim)
        brief.kill(publisher)
        publisher = start_load(brief, f"p{number}")
        await brief.up(publisher, *workers)
    await brief.handled_more(TASKS_A_ROUND)
    report = await finish(brief, publisher)
    assert len(report.acknowledged) >= ROUNDS * TASKS_A_ROUND // 2


async def test_kill_9_of_redis_and_of_workers(server: RedisServer, brief: Scene, chance: random.Random) -> None:
    workers = [brief.worker(f"w{number}", is_chained=True) for number in range(2)]
    publisher = start_load(brief, "p")
    await brief.up(*workers, publisher)
    for number in range(ROUNDS):
        victim = workers.pop(0)
        await brief.handled_more(TASKS_A_ROUND)
        await trio.sleep(chance.uniform(0, 0.05))
        brief.kill(victim)
        await trio.sleep(chance.uniform(0, 0.1))
        await restart(server, brief)
        workers.append(brief.worker(f"w{number + 2}", is_chained=True))
    await brief.up(*workers)
    await brief.handled_more(TASKS_A_ROUND)
    await finish(brief, publisher)
    for worker in workers:
        await brief.stop(worker)
    assert leftovers(server) == []


async def test_a_worker_that_sleeps_past_its_lease(brief: Scene, chance: random.Random) -> None:
    workers = [brief.worker(f"w{number}", is_chained=True) for number in range(2)]
    publisher = start_load(brief, "p")
    await brief.up(*workers, publisher)
    for number in range(ROUNDS):
        await brief.handled_more(TASKS_A_ROUND)
        await trio.sleep(chance.uniform(0, 0.05))
        sleeper = workers[number % 2]
        with brief.fault("suspend", sleeper, echo=1.0):
            sleeper.signal(signal.SIGSTOP)
            await trio.sleep(brief.lease * 1.5)
            # What the sleeper had in hand has moved on by now.
            await brief.handled_more(1)
            sleeper.signal(signal.SIGCONT)
            await works_again(brief, sleeper.name)
    await finish(brief, publisher)


async def test_redis_that_stops_answering_for_longer_than_the_lease(server: RedisServer, brief: Scene) -> None:
    workers = [brief.worker(f"w{number}", is_chained=True) for number in range(2)]
    publisher = start_load(brief, "p")
    await brief.up(*workers, publisher)
    for _ in range(ROUNDS):
        await brief.handled_more(TASKS_A_ROUND)
        with brief.fault("store down", echo=1.0):
            server.pause()
            try:
                await trio.sleep(brief.lease * 1.5)
            finally:
                server.resume()
        await brief.handled_more(TASKS_A_ROUND)
    await finish(brief, publisher)


async def test_who_waits_for_a_result_gets_it_although_redis_was_killed_meanwhile(
    server: RedisServer, scene: Scene
) -> None:
    worker = scene.worker("w")
    await scene.up(worker)
    async with client(scene.url) as omni:
        found: dict[str, object] = {}

        async def wait(id: str) -> None:
            found[id] = await omni.wait_result(id)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                ids = await omni.publish_batch([("work", {"seconds": seconds / 20}) for seconds in range(10, 20)])
                for id in ids:
                    scene.write("invoke", id)
                    scene.write("ok", id)
                    nursery.start_soon(wait, id)
                await scene.until(lambda: bool(scene.ids("start")), "the tasks are at work")
                await restart(server, scene)
                # One more time when some have their results.
                await scene.until(lambda: len(found) >= len(ids) // 2, "half of the results")
                await restart(server, scene)
    assert found == dict.fromkeys(ids, "w")
    report = await finish(scene)
    assert not report.repetitions
