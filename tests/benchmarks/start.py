"""Start: supervised actors started per second, one after the other, each waited for; and 100,000 of them at once.

The bare limit is `nursery.start` of a task that reports and sleeps; the anchor is a pykka actor.
The many are started, some are asked, and all are stopped, in a process of their own.
Run: python -m tests.benchmarks.start
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import trio

from omniactors import Actor, ActorRef, Request, on, open_supervisor
from tests.benchmarks.report import Row, show

try:
    import pykka

    HAS_PYKKA = True
except ModuleNotFoundError:  # the `bench` extra is not installed
    HAS_PYKKA = False

STARTS = 3_000
THREADS = 300
"""Pykka's actors are threads, and take their time."""
ROUNDS = 3
MANY = 100_000
ASKED = 1_000
"""How many of the many are asked."""
MEMORY = Path("/proc/self/statm")
"""Where Linux tells how many pages a process has now; elsewhere only the peak is known."""


class Ping(Request[int]):
    """Asked, to see that an actor is there."""


class Idle(Actor[Ping]):
    """Waits for a message."""

    @on
    async def ping(self, _message: Ping) -> int:
        """Answer."""
        return 1


@dataclass(frozen=True)
class Many:
    """What the many took: seconds, and bytes."""

    starting: float
    asking: float
    stopping: float
    each: float
    """Of memory, per idle actor."""
    peak: float
    """Of the whole process."""


async def supervised() -> float:
    """Starts per second under a supervisor."""
    async with open_supervisor() as sup:
        begun = time.perf_counter()
        for _ in range(STARTS):
            await sup.start_child(Idle)
        return STARTS / (time.perf_counter() - begun)


async def bare() -> float:
    """Starts per second in a nursery."""
    async with trio.open_nursery() as nursery:
        begun = time.perf_counter()
        for _ in range(STARTS):
            await nursery.start(idle)
        elapsed = time.perf_counter() - begun
        nursery.cancel_scope.cancel()
    return STARTS / elapsed


async def idle(*, task_status: trio.TaskStatus[None]) -> None:
    """Report, and sleep."""
    task_status.started()
    await trio.sleep_forever()


def pykka_rate() -> float | None:
    """Starts per second of pykka actors; None when pykka is missing."""
    if not HAS_PYKKA:
        return None

    class PykkaIdle(pykka.ThreadingActor):
        pass

    begun = time.perf_counter()
    refs = [PykkaIdle.start() for _ in range(THREADS)]
    elapsed = time.perf_counter() - begun
    for ref in refs:
        ref.stop()
    return THREADS / elapsed


async def many(count: int) -> Many:
    """Start `count` actors, ask some, stop all."""
    before = memory()
    async with open_supervisor() as sup:
        begun = time.perf_counter()
        refs = [await sup.start_child(Idle) for _ in range(count)]
        started = time.perf_counter()
        gc.collect()
        each = (memory() - before) / count
        begun_asking = time.perf_counter()
        await ask_some(refs)
        asked = time.perf_counter()
    stopped = time.perf_counter()
    return Many(started - begun, asked - begun_asking, stopped - asked, each, peak())


async def ask_some(refs: list[ActorRef[Ping]]) -> None:
    """Ask actors from all over the tree."""
    answers = [await ref.ask(Ping()) for ref in refs[:: len(refs) // ASKED]]
    if sum(answers) < ASKED:
        raise RuntimeError("some actors did not answer, so this measured something else")


def run_many(count: int) -> Many:
    """See `many`; in a process of its own, so that nobody else's memory counts."""
    return trio.run(many, count)


def memory() -> float:
    """Bytes this process has now; the peak where that is not known."""
    if not MEMORY.exists():
        return peak()
    return int(MEMORY.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> float:
    """Bytes this process had at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rows() -> list[Row]:
    """Measure everything here; some thirty seconds, most of them for the many."""
    rounds = [(trio.run(supervised), trio.run(bare), pykka_rate() or 0.0) for _ in range(ROUNDS)]
    ours, limit, threads = (median(rates) for rates in zip(*rounds, strict=True))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as others:
        crowd = others.submit(run_many, MANY).result()
    return [
        Row("supervised start", ours, {"pykka": threads or None}, limit, ">= 0.4x bare"),
        Row(f"start {MANY:,} supervised actors", MANY / crowd.starting),
        Row(f"ask {ASKED:,} of the {MANY:,}", ASKED / crowd.asking),
        Row(f"stop {MANY:,} in order", MANY / crowd.stopping),
        Row(f"memory of one idle actor of {MANY:,}", crowd.each, target="<= 8 KiB (8.19 kB)", unit="B"),
        Row(f"peak memory of the process with {MANY:,}", crowd.peak, unit="B"),
    ]


def main() -> None:
    """Print the rows."""
    show(rows())


if __name__ == "__main__":
    main()
