"""All faults in a random order, on agents with ordering keys, a limit, and a second stage."""

from __future__ import annotations

import signal
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
import trio

from tests.faults.checker import disorder
from tests.faults.scene import SLOW, leftovers
from tests.faults.test_kills import finish, restart

if TYPE_CHECKING:
    import random

    from tests.faults.scene import Program, Scene
    from tests.redis_server import RedisServer

KEYS = 7

ROUNDS = 25 if SLOW else 2

SEEDS = range(4) if SLOW else range(1)


class Chaos:
    """Three workers, a publisher, and what befalls them."""

    def __init__(self, server: RedisServer, scene: Scene, chance: random.Random, *, is_ordered: bool) -> None:
        self.workers: list[Program] = []
        self._server = server
        self._scene = scene
        self._chance = chance
        self._is_ordered = is_ordered
        self._started = 0

    async def hire(self) -> None:
        """Start one more worker."""
        limit = None if self._is_ordered else 6
        worker = self._scene.worker(
            f"w{self._started}", is_chained=True, is_ordered=self._is_ordered, limit=limit, concurrency=4
        )
        self._started += 1
        self.workers.append(worker)
        await self._scene.up(worker)

    async def strike(self) -> None:
        """One fault."""
        faults = (
            self._kill_worker,
            self._stop_worker,
            self._suspend_worker,
            self._kill_redis,
            self._pause_redis,
            self._kill_connections,
            self._flush_scripts,
            self._destroy_group,
        )
        await self._chance.choice(faults)()

    async def _kill_worker(self) -> None:
        self._scene.kill(self._dismiss())
        await self.hire()

    async def _stop_worker(self) -> None:
        await self.hire()
        await self._scene.stop(self._dismiss())

    async def _suspend_worker(self) -> None:
        worker = self._chance.choice(self.workers)
        with self._scene.fault("suspend", worker, echo=1.0):
            worker.signal(signal.SIGSTOP)
            await trio.sleep(self._scene.lease * self._chance.uniform(0.5, 2))
            worker.signal(signal.SIGCONT)

    async def _kill_redis(self) -> None:
        await restart(self._server, self._scene)

    async def _pause_redis(self) -> None:
        with self._scene.fault("store down", echo=1.0):
            self._server.pause()
            await trio.sleep(self._scene.lease * self._chance.uniform(0.5, 2))
            self._server.resume()

    async def _kill_connections(self) -> None:
        self._server.command("CLIENT", "KILL", "TYPE", "normal")
        await trio.lowlevel.checkpoint()

    async def _flush_scripts(self) -> None:
        self._server.command("SCRIPT", "FLUSH")
        await trio.lowlevel.checkpoint()

    async def _destroy_group(self) -> None:
        with self._scene.fault("regroup", echo=1.0):
            self._server.command("XGROUP", "DESTROY", "omni-stream:work", "group:work:worker")
        await trio.lowlevel.checkpoint()

    def _dismiss(self) -> Program:
        return self.workers.pop(self._chance.randrange(len(self.workers)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "is_ordered",
    [
        pytest.param(True, id="ordered", marks=pytest.mark.slow),
        pytest.param(False, id="limited"),
    ],
)
async def test_chaos(*, is_ordered: bool, seed: int, server: RedisServer, brief: Scene, chance: random.Random) -> None:
    chaos = Chaos(server, brief, chance, is_ordered=is_ordered)
    for _ in range(2):
        await chaos.hire()
    # What is tried again may come after its successors: no retries where the order is watched.
    flaky = 0 if is_ordered else 5
    task = {"seconds": 0.01}
    publisher = brief.publisher("p", keys=KEYS, is_stubborn=True, pause=0.004, flaky=flaky, task=task)
    await brief.up(publisher)
    for _ in range(ROUNDS):
        await brief.handled_more(50)
        await trio.sleep(chance.uniform(0, 0.3))
        await chaos.strike()
    await brief.handled_more(50)
    await finish(brief, publisher)
    for worker in chaos.workers:
        await brief.stop(worker)
    assert leftovers(server) == []
    if is_ordered:
        published: dict[str, list[str]] = defaultdict(list)
        for record in brief.records:
            if record.kind == "ok":
                published[f"k{int(record.id.rpartition('-')[2]) % KEYS}"].append(record.id)
        assert disorder(brief.records, published) == []
