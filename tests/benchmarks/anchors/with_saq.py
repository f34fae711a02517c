"""SAQ: jobs in a list, results kept for a day; its concurrency large."""

from __future__ import annotations

import asyncio
import sys
import time

from tests.benchmarks.anchors import MISSING
from tests.benchmarks.anchors.program import main, spread

try:
    from saq import Queue, Worker
except ModuleNotFoundError:
    sys.exit(MISSING)

PUBLISHERS = 10
CONCURRENCY = 10
DAY = 86_400


async def pipeline(url: str, tasks: int) -> float:
    """Tasks per second from the first publish to the last result."""
    queue = Queue.from_url(url)
    done = asyncio.Event()
    count = 0

    async def square(_context: object, *, number: int) -> int:
        return number**2

    async def after(_context: object) -> None:
        nonlocal count
        count += 1
        if count == tasks:
            done.set()

    worker = Worker(queue, [("square", square)], concurrency=CONCURRENCY, after_process=after)
    await queue.connect()
    begun = time.perf_counter()
    running = asyncio.create_task(worker.start())
    await spread(PUBLISHERS, tasks, lambda number: queue.enqueue("square", number=number, ttl=DAY))
    await done.wait()
    elapsed = time.perf_counter() - begun
    await worker.stop()
    running.cancel()
    await queue.disconnect()
    return tasks / elapsed


async def publish(url: str, publishers: int, tasks: int) -> float:
    """Publishes per second by so many tasks; nothing else runs."""
    queue = Queue.from_url(url)
    await queue.connect()
    await queue.enqueue("square", number=0)
    begun = time.perf_counter()
    await spread(publishers, tasks, lambda number: queue.enqueue("square", number=number))
    elapsed = time.perf_counter() - begun
    await queue.disconnect()
    return tasks / elapsed


if __name__ == "__main__":
    main(pipeline, publish)
