"""The network between us and Redis: cut at every byte, stalled, swallowed, slow."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors import Agent, BackendError, EventEnvelope, OmniActors
from tests.faults.proxy import Weather, open_proxy
from tests.faults.scene import SLOW, client, open_scene, works_again
from tests.faults.test_kills import finish, start_load

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.faults.proxy import Direction, Ending, Proxy
    from tests.faults.scene import Scene
    from tests.redis_server import RedisServer

SAMPLE = 12
"""Positions of a dialogue that are cut in CI; every byte in the slow suite."""

LANES = 12 if SLOW else 4
"""Dialogues that are cut at the same time, each on a topic of its own: most of the time is waiting to connect again."""

CUT_LEASE = 2.0
"""Seconds of a lease whose renewals are cut again and again: long enough for one of them to pass on a busy machine."""

GONE = 2.0
"""Seconds for which a server is away while attempts to connect are counted."""

ENDINGS: tuple[Ending, ...] = ("reset", "close", "half", "slow")


class Bench:
    """One agent that counts, in this process, behind a proxy; and a client that is not."""

    def __init__(self, omni: OmniActors, direct: OmniActors, proxy: Proxy, *, topic: str) -> None:
        self.proxy = proxy
        self.starts: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self._omni = omni
        self._direct = direct
        self._topic = topic
        bench = self

        class Counting(Agent, topic=topic, name="counting", concurrency=4):
            async def handle(self, event: EventEnvelope[float]) -> str:
                bench.starts[event.id] += 1
                await trio.sleep(event.payload.content)
                return event.id

        omni.add(Counting)

    async def listen(self) -> None:
        """Count what the bus tells of each task, until cancelled."""
        events = self._omni.bus.subscribe(types="task.>", capacity=100_000)
        async for event in events:
            if event.event_type in {"task.completed", "task.late_completion", "task.failed"}:
                self.told[f"{event.event_type} {event.data['task_id']}"] += 1

    async def work(self, seconds: float = 0.0) -> None:
        """Have one task published past the proxy and handled behind it, once, with nothing left over."""
        id = await self._direct.publish(self._topic, seconds)
        assert await self._direct.wait_result(id) == id
        while await self._is_busy() or not self.told[f"task.completed {id}"]:
            assert not self.told[f"task.late_completion {id}"], "its own settlement was taken for another's"
            await trio.sleep(0.005)
        assert self.starts[id] == 1

    async def _is_busy(self) -> bool:
        streams = await self._direct.streams.list()
        return any(stream.length for stream in streams if stream.topic == self._topic)


@asynccontextmanager
async def open_bench(server: RedisServer, *, topic: str = "cut") -> AsyncIterator[Bench]:
    """A running bench."""
    async with (
        open_proxy(server.port) as proxy,
        client(f"redis://127.0.0.1:{proxy.port}") as omni,
        client(server.url) as direct,
        trio.open_nursery() as nursery,
    ):
        bench = Bench(omni, direct, proxy, topic=topic)
        nursery.start_soon(bench.listen)
        await nursery.start(omni.run)
        yield bench
        proxy.change(Weather())
        nursery.cancel_scope.cancel()


def shares(size: int, chance: random.Random) -> list[list[int]]:
    """Where to cut a dialogue of so many bytes: everywhere, or at its ends and some places between; for each lane."""
    if SLOW:
        chosen = list(range(size + 1))
    else:
        chosen = sorted({0, 1, size - 1, size, *chance.sample(range(size), min(size, SAMPLE))})
    return [chosen[lane::LANES] for lane in range(LANES)]


@pytest.mark.parametrize("direction", ["request", "reply"])
async def test_a_cut_at_any_byte_of_waiting_fetching_and_settling(
    direction: Direction, server: RedisServer, chance: random.Random
) -> None:
    happened: list[int] = []

    async def cut_at(topic: str, positions: list[int]) -> None:
        async with open_bench(server, topic=topic) as bench:
            await bench.work()
            for position in positions:
                cut = bench.proxy.cut_after(direction, position, how=chance.choice(ENDINGS))
                with trio.fail_after(20):
                    await bench.work()
                if cut.happened.is_set():
                    happened.append(position)
                bench.proxy.forget_cut()
            assert not [name for name in bench.told if name.startswith(("task.late", "task.failed"))]

    async with open_bench(server, topic="cut-x") as bench:
        await bench.work()
        before = bench.proxy.passed[direction]
        await bench.work()
        size = bench.proxy.passed[direction] - before
    async with trio.open_nursery() as nursery:
        for lane, positions in enumerate(shares(size, chance)):
            nursery.start_soon(cut_at, f"cut-{lane}", positions)
    # A dialogue is not always as long as the one that was measured: some cuts come too late for it.
    assert len(happened) > (size if SLOW else SAMPLE) // 2


@pytest.mark.parametrize("mode", ["plain", "running"])
@pytest.mark.parametrize("direction", ["request", "reply"])
async def test_a_cut_at_any_byte_of_connecting_and_publishing(
    direction: Direction, mode: str, server: RedisServer, chance: random.Random
) -> None:
    async def publish(proxy: Proxy, topic: str, id: str) -> None:
        async with client(f"redis://127.0.0.1:{proxy.port}") as omni, AsyncExitStack() as stack:
            if mode == "running":
                await stack.enter_async_context(omni)
            await omni.publish(topic, id, task_id=id)

    def length(topic: str) -> int:
        return int(str(server.command("XLEN", f"omni-stream:{topic}")))

    async def cut_at(topic: str, positions: list[int]) -> None:
        async with open_proxy(server.port) as proxy:
            for position in positions:
                before, outcome = length(topic), "acknowledged"
                proxy.cut_after(direction, position, how=chance.choice(ENDINGS))
                with trio.fail_after(30):
                    try:
                        await publish(proxy, topic, str(position))
                    except BackendError as error:
                        outcome = "failed" if error.outcome_known else "unknown"
                    proxy.forget_cut()
                    added = length(topic) - before
                    assert added == {"acknowledged": 1, "failed": 0}.get(outcome, added), (position, outcome)
                    # Whoever does not know tries again, with the same id.
                    await publish(proxy, topic, str(position))
                assert length(topic) - before == 1, (position, outcome)

    async with open_proxy(server.port) as proxy:
        await publish(proxy, "cut-x", "first")
        before = proxy.passed[direction]
        await publish(proxy, "cut-x", "second")
        size = proxy.passed[direction] - before
    async with trio.open_nursery() as nursery:
        for lane, positions in enumerate(shares(size, chance)):
            nursery.start_soon(cut_at, f"cut-{lane}", positions)


async def test_cuts_while_the_lease_is_renewed_and_a_rival_waits_for_its_end(
    server: RedisServer, tmp_path: Path, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIACTORS_LEASE", f"{CUT_LEASE:g}")
    with open_scene(tmp_path / "scene", server.url, lease=CUT_LEASE) as scene:
        async with open_bench(server) as bench:
            # The rival comes when the task is at work here, so that it can get it only by its lease.
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(bench.work, 2 * CUT_LEASE)
                    while not bench.starts:  # noqa: ASYNC110 -- an event of its own would say no more
                        await trio.sleep(0.005)
                    await scene.up(scene.worker("rival", topic="cut", agent="counting"))
                    for _ in range(8):
                        await trio.sleep(chance.uniform(0.05, 0.35) * CUT_LEASE)
                        bench.proxy.cut_all(how=chance.choice(("reset", "close")))
            assert scene.ids("start") == set()


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


async def test_a_server_that_has_gone_is_not_stormed(server: RedisServer, scene: Scene) -> None:
    async with open_proxy(server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        worker, publisher = scene.worker("w", url=url), scene.publisher("p", url=url)
        await scene.up(worker, publisher)
        await scene.handled(20)
        server.kill()
        before = proxy.accepted
        await trio.sleep(GONE)
        attempts = proxy.accepted - before
        await trio.to_thread.run_sync(server.start)
        # Three connections of the worker and one of the publisher, each of which tries at growing distances.
        assert 1 <= attempts <= 30
        await scene.handled_more(20)
        report = await finish(scene, publisher)
        assert not report.repetitions
        assert len(worker.stderr.splitlines()) <= 12, "it is said once, not at each try"


@pytest.mark.slow  # takes half a minute: only a timeout tells that bytes are gone
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
        proxy.change(Weather(latency=0.02, jitter=0.02, bandwidth=200_000, chunk=3333))
        url = f"redis://127.0.0.1:{proxy.port}"
        worker = scene.worker("w", url=url, is_chained=True)
        publisher = scene.publisher("p", url=url)
        await scene.up(worker, publisher)
        await scene.handled(200 if SLOW else 20, seconds=60)
        report = await finish(scene, publisher)
        assert not report.repetitions
        assert not report.unknown
