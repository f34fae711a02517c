"""FastStream: a Redis stream with a consumer group, acknowledged; it keeps no results."""

from __future__ import annotations

import asyncio
import sys
import time

from tests.benchmarks.anchors import MISSING
from tests.benchmarks.anchors.program import main, spread

try:
    from faststream.redis import RedisBroker, StreamSub
except ModuleNotFoundError:
    sys.exit(MISSING)

PUBLISHERS = 10


async def pipeline(url: str, tasks: int) -> float:
    """Tasks per second from the first publish to the last one handled."""
    broker = RedisBroker(url, logger=None)
    done = asyncio.Event()
    count = 0

    @broker.subscriber(stream=StreamSub("square", group="square", consumer="one"))  # type: ignore[untyped-decorator]
    async def handle(number: int) -> None:
        nonlocal count
        count += number**2 >= 0
        if count == tasks:
            done.set()

    await broker.start()
    begun = time.perf_counter()
    await spread(PUBLISHERS, tasks, lambda number: broker.publish(number, stream="square"))
    await done.wait()
    elapsed = time.perf_counter() - begun
    await broker.stop()
    return tasks / elapsed


async def publish(url: str, publishers: int, tasks: int) -> float:
    """Publishes per second by so many tasks; nothing else runs."""
    broker = RedisBroker(url, logger=None)
    await broker.connect()
    await broker.publish(0, stream="square")
    begun = time.perf_counter()
    await spread(publishers, tasks, lambda number: broker.publish(number, stream="square"))
    elapsed = time.perf_counter() - begun
    await broker.stop()
    return tasks / elapsed


if __name__ == "__main__":
    main(pipeline, publish)
