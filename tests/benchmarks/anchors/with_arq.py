"""arq: jobs in a sorted set, results kept for a day; its poll delay made short, its concurrency large."""

from __future__ import annotations

import asyncio
import sys
import time

from tests.benchmarks.anchors import MISSING
from tests.benchmarks.anchors.program import main, spread

try:
    from arq import create_pool
    from arq.connections import RedisSettings
    from arq.worker import Worker, func
except ModuleNotFoundError:
    sys.exit(MISSING)

PUBLISHERS = 10
JOBS = 100
POLL_DELAY = 0.01
DAY = 86_400


async def pipeline(url: str, tasks: int) -> float:
    """Tasks per second from the first publish to the last one handled."""
    pool = await create_pool(RedisSettings.from_dsn(url))
    done = asyncio.Event()
    count = 0

    async def square(_context: object, number: int) -> int:
        return number**2

    async def after(_context: object) -> None:
        nonlocal count
        count += 1
        if count == tasks:
            done.set()

    worker = Worker(
        [func(square, name="square")],
        redis_pool=pool,
        after_job_end=after,
        handle_signals=False,
        max_jobs=JOBS,
        keep_result=DAY,
        poll_delay=POLL_DELAY,
    )
    begun = time.perf_counter()
    running = asyncio.create_task(worker.async_run())
    await spread(PUBLISHERS, tasks, lambda number: pool.enqueue_job("square", number))
    await done.wait()
    elapsed = time.perf_counter() - begun
    running.cancel()
    await asyncio.wait([running])
    await worker.close()
    return tasks / elapsed


async def publish(url: str, publishers: int, tasks: int) -> float:
    """Publishes per second by so many tasks; nothing else runs."""
    pool = await create_pool(RedisSettings.from_dsn(url))
    await pool.enqueue_job("square", 0)
    begun = time.perf_counter()
    await spread(publishers, tasks, lambda number: pool.enqueue_job("square", number))
    elapsed = time.perf_counter() - begun
    await pool.aclose()
    return tasks / elapsed


if __name__ == "__main__":
    main(pipeline, publish)
