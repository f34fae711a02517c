"""Latency: from the call of `publish` to the handler, on Redis under a steady load, and across processes on a file.

The bare limit on Redis does it by hand over two connections: XADD on one, a blocking XREADGROUP on the
other. On the file the publisher is another process, that publishes now and then: the time is that of
noticing it. Run: python -m tests.benchmarks.latency
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from statistics import quantiles

import trio

from omniactors import Agent, EventEnvelope, OmniActors
from tests.benchmarks.anchors import bare
from tests.benchmarks.report import Row, show
from tests.redis_server import RedisServer

RATE = 1_000
"""Events per second."""
SECONDS = 5
WARM_UP = 500
"""Events at the beginning that are not counted."""
WAKES = 60
PAUSE = 0.0731
"""Seconds between two events from the other process: no multiple of what anybody polls with."""
LIMIT = 50.0
"""Seconds after which a measurement is given up."""


class Late(Agent, topic="late", name="late"):
    """Notes how old an event is when it comes: its content is the clock at its publication."""

    def __init__(self, ages: list[float]) -> None:
        self.ages = ages

    async def handle(self, event: EventEnvelope[float]) -> None:
        """Look at the clock; it is the same in all processes of a machine."""
        self.ages.append(time.monotonic() - event.payload.content)


async def ours(url: str) -> list[float]:
    """The ages of all events, in seconds, published in time whether earlier ones are done or not."""
    ages: list[float] = []
    omni = OmniActors(url)
    omni.add(Late, ages)
    with trio.fail_after(LIMIT):
        async with omni, trio.open_nursery() as nursery:
            begun = trio.current_time()
            for number in range(RATE * SECONDS):
                await trio.sleep_until(begun + number / RATE)
                nursery.start_soon(omni.publish, "late", time.monotonic())
            await reached(ages, RATE * SECONDS)
    return ages[WARM_UP:]


async def by_hand(url: str) -> list[float]:
    """The same, with two connections."""
    ages: list[float] = []
    count = RATE * SECONDS
    with trio.fail_after(LIMIT):
        async with bare.connect(url) as publishing, bare.connect(url) as taking, trio.open_nursery() as nursery:
            await taking.pipeline([("XGROUP", "CREATE", "late", "late", "0", "MKSTREAM")])
            nursery.start_soon(_take, taking, ages, count)
            begun = trio.current_time()
            for number in range(count):
                await trio.sleep_until(begun + number / RATE)
                await publishing.pipeline([("XADD", "late", "*", "data", repr(time.monotonic()))])
    return ages[WARM_UP:]


async def _take(connection: bare.Connection, ages: list[float], count: int) -> None:
    read = ("XREADGROUP", "GROUP", "late", "one", "COUNT", 100, "BLOCK", 5000, "STREAMS", "late", ">")
    while len(ages) < count:
        [[[_, entries]]] = await connection.pipeline([read])
        ages += [time.monotonic() - float(content) for _, (_, content) in entries]
        await connection.pipeline([("XACK", "late", "late", *(entry_id for entry_id, _ in entries))])


async def across(url: str) -> list[float]:
    """The ages of events that another process published."""
    ages: list[float] = []
    omni = OmniActors(url)
    omni.add(Late, ages)
    with trio.fail_after(LIMIT):
        async with omni:
            command = [sys.executable, "-m", "tests.benchmarks.latency", "publish", url]
            await trio.run_process(command)
            await reached(ages, WAKES)
    return ages


async def publish_now_and_then(url: str) -> None:
    """What the other process does."""
    omni = OmniActors(url)
    for _ in range(WAKES):
        await omni.publish("late", time.monotonic())
        await trio.sleep(PAUSE)
    await omni.shutdown()


async def reached(ages: list[float], count: int) -> None:
    """Wait until so many have come."""
    while len(ages) < count:  # noqa: ASYNC110 -- an event would cost the handler something
        await trio.sleep(0.01)


def percentile(ages: list[float], which: int) -> float:
    """So many percent were at most so old, in milliseconds."""
    return 1000 * quantiles(ages, n=100)[which - 1]


def rows() -> list[Row]:
    """Measure everything here; about 20 seconds."""
    with redirect_stderr(StringIO()), tempfile.TemporaryDirectory() as folder:
        with RedisServer(Path(folder) / "redis") as server:
            ages = trio.run(ours, server.url)
            limit = trio.run(by_hand, server.url)
        woken = trio.run(across, f"sqlite:///{folder}/work.db")
    name = f"publish to handler on Redis at {RATE:,}/s"
    return [
        Row(f"{name}, p50", percentile(ages, 50), bare=percentile(limit, 50), target="<= 2 ms", unit="ms"),
        Row(f"{name}, p99", percentile(ages, 99), bare=percentile(limit, 99), target="<= 10 ms", unit="ms"),
        Row(
            "publish to handler across processes on the file, p50", percentile(woken, 50), target="<= 15 ms", unit="ms"
        ),
        Row("publish to handler across processes on the file, p99", percentile(woken, 99), unit="ms"),
    ]


def main() -> None:
    """Print the rows, or be the other process."""
    if len(sys.argv) > 1:
        trio.run(publish_now_and_then, sys.argv[2])
    else:
        show(rows())


if __name__ == "__main__":
    main()
