"""The network between us and Redis: cut at every byte, stalled, swallowed, slow."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors import Agent, BackendError, EventEnvelope, OmniActors
from tests.faults.proxy import Weather, open_proxy
from tests.faults.scene import SLOW, client, works_again
from tests.faults.test_kills import finish, start_load

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from tests.faults.proxy import Direction, Ending, Proxy
    from tests.faults.scene import Scene
    from tests.redis_server import RedisServer

SAMPLE = 12
"""Positions of a dialogue that are cut in CI; every byte in the slow suite."""

ENDINGS: tuple[Ending, ...] = ("reset", "close", "half")


class Bench:
    """One agent that counts, in this process, behind a proxy; and a client that is not."""

    def __init__(self, omni: OmniActors, direct: OmniActors, proxy: Proxy) -> None:
        self.omni = omni
        self.direct = direct
        self.proxy = proxy
        self.starts: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        bench = self

        class Counting(Agent, topic="cut", name="counting", concurrency=4):
            async def handle(self, event: EventEnvelope[float]) -> str:
                bench.starts[event.id] += 1
                await trio.sleep(event.payload.content)
                return event.id

        omni.add(Counting)

    async def listen(self) -> None:
        """Count what the bus tells of each task, until cancelled."""
        events = self.omni.bus.subscribe(types="task.>", capacity=100_000)
        async for event in events:
            if event.event_type in {"task.completed", "task.late_completion", "task.failed"}:
                self.told[f"{event.event_type} {event.data['task_id']}"] += 1

    async def work(self, seconds: float = 0.0) -> str:
        """Have one task published past the proxy and handled behind it."""
        id = await self.direct.publish("cut", seconds)
        assert await self.direct.wait_result(id) == id
        while any(stream.length for stream in await self.direct.streams.list()):  # noqa: ASYNC110 -- another's store
            await trio.sleep(0.002)
        while not self.told[f"task.completed {id}"]:
            assert not self.told[f"task.late_completion {id}"], "its own settlement was taken for another's"
            await trio.sleep(0.002)
        assert self.starts[id] == 1
        return id


@asynccontextmanager
async def bench(server: RedisServer) -> AsyncIterator[Bench]:
    """A running bench."""
    async with (
        open_proxy(server.port) as proxy,
        client(f"redis://127.0.0.1:{proxy.port}") as omni,
        client(server.url) as direct,
        trio.open_nursery() as nursery,
    ):
        bench = Bench(omni, direct, proxy)
        nursery.start_soon(bench.listen)
        await nursery.start(omni.run)
        yield bench
        proxy.change(Weather())
        nursery.cancel_scope.cancel()


def positions(size: int, chance: random.Random) -> list[int]:
    """Where to cut a dialogue of so many bytes: everywhere, or at its ends and some places between."""
    if SLOW:
        return list(range(size + 1))
    return sorted({0, 1, size - 1, size, *chance.sample(range(size), min(size, SAMPLE))})


@pytest.mark.parametrize("direction", ["request", "reply"])
async def test_a_cut_at_any_byte_of_waiting_fetching_and_settling(
    direction: Direction, server: RedisServer, chance: random.Random
) -> None:
    async with bench(server) as it:
        await it.work()
        before = it.proxy.passed[direction]
        await it.work()
        size = it.proxy.passed[direction] - before
        happened = 0
        for position in positions(size, chance):
            cut = it.proxy.cut_after(direction, position, how=chance.choice(ENDINGS))
            with trio.fail_after(10):
                await it.work()
            happened += cut.happened.is_set()
            it.proxy.forget_cut()
        assert happened > size // 2 if SLOW else happened >= SAMPLE // 2
        assert not [name for name in it.told if name.startswith(("task.late", "task.failed"))]


@pytest.mark.parametrize("mode", ["plain", "running"])
@pytest.mark.parametrize("direction", ["request", "reply"])
async def test_a_cut_at_any_byte_of_connecting_and_publishing(
    direction: Direction, mode: str, server: RedisServer, chance: random.Random
) -> None:
    async with open_proxy(server.port) as proxy:

        async def publish(id: str) -> None:
            async with client(f"redis://127.0.0.1:{proxy.port}") as omni:
                if mode == "plain":
                    await omni.publish("cut", id, task_id=id)
                else:
                    async with omni:
                        await omni.publish("cut", id, task_id=id)

        await publish("first")
        before = proxy.passed[direction]
        await publish("second")
        size = proxy.passed[direction] - before
        for position in positions(size, chance):
            length = int(str(server.command("XLEN", "omni-stream:cut")))
            proxy.cut_after(direction, position, how=chance.choice(ENDINGS))
            outcome = "acknowledged"
            with trio.fail_after(20):
                try:
                    await publish(str(position))
                except BackendError as error:
                    outcome = "failed" if error.outcome_known else "unknown"
                proxy.forget_cut()
                added = int(str(server.command("XLEN", "omni-stream:cut"))) - length
                assert added == 1 if outcome == "acknowledged" else added == 0 or outcome == "unknown", (
                    position,
                    outcome,
                )
                await publish(str(position))
            assert int(str(server.command("XLEN", "omni-stream:cut"))) - length == 1, (position, outcome)


async def test_cuts_while_the_lease_is_renewed_and_a_rival_waits_for_its_end(
    server: RedisServer, brief: Scene, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIACTORS_LEASE", f"{brief.lease:g}")
    rival = brief.worker("rival", topic="cut", agent="counting")
    async with bench(server) as it:
        # The rival comes when the task is at work here, so that it can get it only by its lease.
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(it.work, 4 * brief.lease)
                while not it.starts:  # noqa: ASYNC110 -- an event of its own would say no more
                    await trio.sleep(0.005)
                await brief.up(rival)
                for _ in range(16):
                    await trio.sleep(chance.uniform(0, 0.4 * brief.lease))
                    it.proxy.cut_all(how=chance.choice(("reset", "close")))
        assert brief.ids("start") == set()


async def test_a_link_that_stalls_past_the_lease_and_comes_back(server: RedisServer, brief: Scene) -> None:
    async with open_proxy(server.port) as proxy:
        behind = brief.worker("behind", url=f"redis://127.0.0.1:{proxy.port}", is_chained=True)
        beside = brief.worker("beside", is_chained=True)
        publisher = start_load(brief, "p")
        await brief.up(behind, beside, publisher)
        for _ in range(5 if SLOW else 1):
            await brief.handled_more(100)
            with brief.fault("link", behind, echo=1.0):
                proxy.change(Weather(flow="stall"))
                await trio.sleep(1.5 * brief.lease)
                await brief.handled_more(50)
                proxy.change(Weather())
                await works_again(brief, "behind")
        await finish(brief, publisher)


async def test_a_link_that_swallows_what_is_sent(server: RedisServer, scene: Scene) -> None:
    async with open_proxy(server.port) as proxy:
        behind = scene.worker("behind", url=f"redis://127.0.0.1:{proxy.port}", is_chained=True)
        publisher = scene.publisher("p", url=f"redis://127.0.0.1:{proxy.port}", pause=0.005)
        await scene.up(behind, publisher)
        await scene.handled(50)
        with scene.fault("link", echo=2.0):
            proxy.change(Weather(flow="swallow"))
            await trio.sleep(0.3)
            proxy.change(Weather())
            # Nobody is told that bytes are gone: it ends when an answer has not come for too long.
            await scene.handled_more(50, seconds=30)
        await finish(scene, publisher)


async def test_a_slow_link_costs_time_and_nothing_else(server: RedisServer, scene: Scene) -> None:
    async with open_proxy(server.port, seed=11) as proxy:
        proxy.change(Weather(latency=0.03, jitter=0.05, bandwidth=100_000, chunk=333))
        url = f"redis://127.0.0.1:{proxy.port}"
        worker = scene.worker("w", url=url, is_chained=True)
        publisher = scene.publisher("p", url=url)
        await scene.up(worker, publisher)
        await scene.handled(200 if SLOW else 40, seconds=60)
        report = await finish(scene, publisher)
        assert not report.repetitions
        assert not report.unknown
