"""OmniDaemon: `publish_task` to one agent with its default settings, results stored in Redis too."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from tests.benchmarks.anchors import MISSING
from tests.benchmarks.anchors.program import main, spread

try:
    from omnidaemon import AgentConfig, EventEnvelope, OmniDaemonSDK, PayloadBase
    from omnidaemon.event_bus import RedisStreamEventBus
    from omnidaemon.storage import JSONStore, RedisStore
except ModuleNotFoundError:
    sys.exit(MISSING)

if TYPE_CHECKING:
    from pathlib import Path

    from omnidaemon.storage.base import BaseStore

PUBLISHERS = 10
"""It ran fastest so: one publisher waits for each reply, more of them wait for each other."""


def sdk(url: str, store: BaseStore | None = None) -> OmniDaemonSDK:
    """A client whose every part is in that Redis, or all but the results, which are in `store`."""
    return OmniDaemonSDK(event_bus=RedisStreamEventBus(url), store=store or RedisStore(url))


def file_store(folder: Path) -> BaseStore:
    """What it uses when nothing is set."""
    return JSONStore(str(folder))


def square(number: int) -> EventEnvelope:
    """The task."""
    return EventEnvelope(topic="square", payload=PayloadBase(content=[number]))


async def pipeline(url: str, tasks: int, store: BaseStore | None = None) -> float:
    """Tasks per second from the first publish to the last result."""
    omni = sdk(url, store)
    done = asyncio.Event()
    count = 0

    async def handle(message: dict[str, list[int]]) -> int:
        nonlocal count
        count += 1
        if count == tasks:
            done.set()
        return message["content"][0] ** 2

    await omni.register_agent(AgentConfig(name="square", topic="square", callback=handle))
    await omni.start()
    begun = time.perf_counter()
    await spread(PUBLISHERS, tasks, lambda number: omni.publish_task(square(number)))
    await done.wait()
    elapsed = time.perf_counter() - begun
    await omni.shutdown()
    return tasks / elapsed


async def publish(url: str, publishers: int, tasks: int) -> float:
    """Publishes per second by so many tasks; nothing else runs."""
    omni = sdk(url)
    await omni.publish_task(square(0))
    begun = time.perf_counter()
    await spread(publishers, tasks, lambda number: omni.publish_task(square(number)))
    elapsed = time.perf_counter() - begun
    await omni.shutdown()
    return tasks / elapsed


if __name__ == "__main__":
    main(pipeline, publish)
