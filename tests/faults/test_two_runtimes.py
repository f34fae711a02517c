"""Two runtimes on one Redis: who has what, who takes over, and what keeps its order and its limit."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import trio

from tests.faults.checker import disorder
from tests.faults.scene import SLOW, client, leftovers
from tests.faults.test_kills import finish

if TYPE_CHECKING:
    from tests.faults.checker import Record
    from tests.faults.scene import Scene
    from tests.redis_server import RedisServer

NEIGHBOURS = 1000
"""Entries that a living process holds and that stand before those of the one that dies."""

SLACK = 1.5
"""Seconds beyond the lease for looking at it and for starting a handler on a busy machine."""


async def publish(scene: Scene, count: int, *, seconds: float) -> set[str]:
    """Publish so many tasks at once, and note them in the history."""
    async with client(scene.url) as omni:
        ids = await omni.publish_batch([("work", {"seconds": seconds})] * count)
    for id in ids:
        scene.write("invoke", id)
        scene.write("ok", id)
    return set(ids)


async def test_a_task_three_times_longer_than_the_lease_runs_once(brief: Scene) -> None:
    workers = [brief.worker(f"w{number}", concurrency=4) for number in range(2)]
    await brief.up(*workers)
    ids = await publish(brief, 4, seconds=3 * brief.lease + 0.3)
    report = await finish(brief)
    assert report.ended == ids
    assert not report.repetitions


async def test_work_of_a_killed_runtime_moves_within_the_lease_past_a_thousand_entries_of_a_living_one(
    brief: Scene,
) -> None:
    living = brief.worker("living", concurrency=NEIGHBOURS, capacity=NEIGHBOURS)
    await brief.up(living)
    neighbours = await publish(brief, NEIGHBOURS, seconds=300)
    await brief.until(lambda: brief.ids("start") >= neighbours, "the neighbours are at work")
    victim = brief.worker("victim", concurrency=8)
    await brief.up(victim)
    mine = await publish(brief, 8, seconds=300)
    await brief.until(lambda: brief.ids("start") >= mine, "the victim is at work")
    heir = brief.worker("heir", concurrency=8)
    await brief.up(heir)
    brief.kill(victim)
    killed = brief.faults[-1].since

    def inherited() -> dict[str, float]:
        brief.poll()
        return {record.id: record.at for record in brief.records if record.process == "heir"}

    await brief.until(lambda: inherited().keys() == mine, "the work has moved")
    assert max(inherited().values()) - killed <= brief.lease + SLACK
    begun = [record.id for record in brief.records if record.kind == "start" and record.id in neighbours]
    assert len(begun) == NEIGHBOURS, "what the living one holds is not begun again"


async def test_a_rolling_restart_under_load_loses_nothing_and_repeats_nothing(scene: Scene) -> None:
    workers = [scene.worker(f"w{number}", is_chained=True) for number in range(2)]
    publisher = scene.publisher("p", pause=0.002, task={"seconds": 0.02})
    await scene.up(*workers, publisher)
    for number in range(8 if SLOW else 2):
        fresh = scene.worker(f"w{number + 2}", is_chained=True)
        await scene.up(fresh)
        await scene.handled_more(100)
        await scene.stop(workers.pop(0))
        workers.append(fresh)
    report = await finish(scene, publisher)
    assert not report.repetitions
    assert not report.unknown


async def test_order_per_key_over_two_processes_that_are_restarted_and_killed(
    server: RedisServer, brief: Scene
) -> None:
    workers = [brief.worker(f"w{number}", is_ordered=True, concurrency=4) for number in range(2)]
    publisher = brief.publisher("p", keys=5, is_stubborn=True, pause=0.001, task={"seconds": 0.004})
    await brief.up(*workers, publisher)
    for number in range(6 if SLOW else 2):
        await brief.handled_more(100)
        fresh = brief.worker(f"w{number + 2}", is_ordered=True, concurrency=4)
        await brief.up(fresh)
        await brief.handled_more(50)
        leaver = workers.pop(0)
        if number % 2:
            await brief.stop(leaver)
        else:
            brief.kill(leaver)
        workers.append(fresh)
    await brief.handled_more(100)
    report = await finish(brief, publisher)
    published: dict[str, list[str]] = defaultdict(list)
    for record in brief.records:
        if record.kind == "ok":
            published[f"k{int(record.id.rpartition('-')[2]) % 5}"].append(record.id)
    assert sum(map(len, published.values())) == len(report.acknowledged)
    assert disorder(brief.records, published) == []
    for worker in workers:
        await brief.stop(worker)
    assert leftovers(server) == []
    both = {record.process for record in brief.records if record.kind == "start"}
    assert len(both) > 2, "several processes have worked on the keys"


def most_at_once(records: list[Record]) -> int:
    """How many tasks were at work at the same time, at most."""
    changes = sorted((record.at, 1 if record.kind == "start" else -1) for record in records if record.kind in SPAN)
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


SPAN = {"start", "done"}


async def test_a_limit_holds_over_two_processes_and_is_not_used_up_by_a_dead_one(brief: Scene) -> None:
    workers = [brief.worker(f"w{number}", limit=3, concurrency=4) for number in range(2)]
    await brief.up(*workers)
    await publish(brief, 30, seconds=0.05)
    await brief.until(lambda: len(brief.ids("commit")) >= 30, "all are handled")
    assert most_at_once(brief.records) == 3
    # The dead one's share comes back with its entries.
    await publish(brief, 20, seconds=0.1)
    await brief.until(lambda: in_hand(brief, "w0") > 0, "the victim has something in hand")
    brief.kill(workers[0])
    report = await finish(brief)
    assert len(report.ended) == 50
    killed = brief.faults[-1].until
    fresh = {record.id for record in brief.records if record.kind == "start" and record.at < killed}
    later = [record for record in brief.records if record.process == "w1" and record.id not in fresh]
    assert most_at_once(later) == 3


def in_hand(scene: Scene, name: str) -> int:
    """How many tasks that process has begun and not done."""
    scene.poll()
    kinds = [record.kind for record in scene.records if record.process == name]
    return kinds.count("start") - kinds.count("done")


async def test_a_pause_survives_a_restart_of_everything(server: RedisServer, scene: Scene) -> None:
    worker = scene.worker("w0")
    await scene.up(worker)
    async with client(scene.url) as omni:
        await omni.agents.pause("worker")
        await scene.stop(worker)
        server.kill()
        await trio.to_thread.run_sync(server.start)
        fresh = scene.worker("w1", is_chained=True)
        await scene.up(fresh)
        assert list(await omni.agents.paused()) == ["worker"]
        await publish(scene, 20, seconds=0)
        # Its neighbour in the same process is not paused: once it is done the paused one would be too.
        await omni.publish("next", "sentinel")
        await scene.until(lambda: "next/sentinel" in scene.ids("done"), "the neighbour works")
        assert scene.ids("start") == {"next/sentinel"}
        await omni.agents.resume("worker")
    await scene.handled(20 + 20 + 1, seconds=5)


async def test_delayed_publishes_survive_kill_9_of_redis_and_are_on_time(server: RedisServer, scene: Scene) -> None:
    worker = scene.worker("w")
    await scene.up(worker)
    scene.publisher("p", count=30, delay=1.5, is_stubborn=True)
    await scene.until(lambda: len(scene.ids("ok")) == 30, "all are published")
    with scene.fault("store down", echo=scene.lease):
        server.kill()
        await trio.to_thread.run_sync(server.start)
    report = await finish(scene)
    assert len(report.ended) == 30
    published = {record.id: record.at for record in scene.records if record.kind == "ok"}
    late = [record.at - published[record.id] - 1.5 for record in scene.records if record.kind == "start"]
    assert min(late) > -0.05, "none is early"
    assert max(late) < 2.0, "none is much too late"
