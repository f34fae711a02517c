"""Bus fan-out: events delivered to 1 to 1,000 readers, and what a publish costs with 50 that never read.

The bare limit is a trio memory channel for each reader, filled with `send_nowait` and drained with
`receive_nowait`: no offsets, no history, no patterns, no counts. The anchor is how in-process buses
are mostly written: an asyncio queue for each reader, awaited `put`, one `get` at a time. (The bus that
this one replaces is no package that can be installed.) Run: python -m tests.benchmarks.bus_fanout
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from statistics import median
from typing import TYPE_CHECKING

import trio

from omniactors.events.bus import EventBus
from omniactors.events.event import Event
from tests.benchmarks.report import Row, show

if TYPE_CHECKING:
    from omniactors.events.subscription import Subscription

DELIVERIES = 100_000
BURSTS = (4, 200)
"""Events published before readers get their turn: as a busy system does, and as fast as it goes."""
STALLED = 50
STALLED_PUBLISHES = 20_000
ROUNDS = 3

EVENT = Event(run_id="run", event_type="task.completed", data={"agent": "greeter", "attempts": 1})


async def ours(readers: int, burst: int) -> float:
    """Deliveries per second of an EventBus to readers that drain."""
    bus = EventBus(max_global_subscribers=readers)
    subscriptions = [bus.subscribe_global() for _ in range(readers)]
    events = max(burst, DELIVERIES // readers)

    async def read(subscription: Subscription) -> None:
        count = 0
        while count < events:
            count += len(await subscription.receive_batch())

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for subscription in subscriptions:
            nursery.start_soon(read, subscription)
        for start in range(0, events, burst):
            for _ in range(min(burst, events - start)):
                bus.publish(EVENT)
            await trio.lowlevel.checkpoint()
    return events * readers / (time.perf_counter() - begun)


async def bare(readers: int, burst: int) -> float:
    """Deliveries per second of plain memory channels to readers that drain."""
    channels = [trio.open_memory_channel[Event](1024) for _ in range(readers)]
    events = max(burst, DELIVERIES // readers)

    async def read(receiving: trio.MemoryReceiveChannel[Event]) -> None:
        count = 0
        while count < events:
            await receiving.receive()
            count += 1
            try:
                while True:
                    receiving.receive_nowait()
                    count += 1
            except trio.WouldBlock:
                pass

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _, receiving in channels:
            nursery.start_soon(read, receiving)
        for start in range(0, events, burst):
            for _ in range(min(burst, events - start)):
                for sending, _ in channels:
                    sending.send_nowait(EVENT)
            await trio.lowlevel.checkpoint()
    return events * readers / (time.perf_counter() - begun)


async def queues(readers: int, burst: int) -> float:
    """Deliveries per second of asyncio queues, as `ours` is driven."""
    channels: list[asyncio.Queue[Event]] = [asyncio.Queue(1024) for _ in range(readers)]
    events = max(burst, DELIVERIES // readers)

    async def read(queue: asyncio.Queue[Event]) -> None:
        for _ in range(events):
            await queue.get()

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for queue in channels:
            group.create_task(read(queue))
        for start in range(0, events, burst):
            for _ in range(min(burst, events - start)):
                for queue in channels:
                    await queue.put(EVENT)
            await asyncio.sleep(0)
    return events * readers / (time.perf_counter() - begun)


async def publish_alone(readers: int) -> float:
    """Publishes per second while `readers` subscriptions are full and nobody reads them."""
    bus = EventBus()
    stalled = [bus.subscribe_global(capacity=1) for _ in range(readers)]
    bus.claim()
    bus.publish(EVENT)
    begun = time.perf_counter()
    for _ in range(STALLED_PUBLISHES):
        bus.publish(EVENT)
    elapsed = time.perf_counter() - begun
    if any(subscription.dropped != STALLED_PUBLISHES for subscription in stalled):
        raise RuntimeError("the readers were not stalled, so this measured something else")
    return STALLED_PUBLISHES / elapsed


async def bare_stalled() -> float:
    """As `publish_alone`, with plain memory channels that are full."""
    channels = [trio.open_memory_channel[Event](1) for _ in range(STALLED)]
    for sending, _ in channels:
        sending.send_nowait(EVENT)
    begun = time.perf_counter()
    for _ in range(STALLED_PUBLISHES // 10):
        for sending, _ in channels:
            with contextlib.suppress(trio.WouldBlock):
                sending.send_nowait(EVENT)
    return STALLED_PUBLISHES // 10 / (time.perf_counter() - begun)


def rows() -> list[Row]:
    """Measure everything here; some seconds."""
    found = []
    for burst, readers in itertools.product(BURSTS, (1, 10, 50, 1000)):
        rounds = [
            (trio.run(ours, readers, burst), trio.run(bare, readers, burst), asyncio.run(queues(readers, burst)))
            for _ in range(ROUNDS)
        ]
        mine, limit, anchor = (median(rates) for rates in zip(*rounds, strict=True))
        name = f"bus fan-out to {readers:,}, {burst} a turn, deliveries"
        found.append(Row(name, mine, {"asyncio queues": anchor}, limit, ">= 0.5x bare"))
    full = median(trio.run(publish_alone, STALLED) for _ in range(ROUNDS))
    limit = median(trio.run(bare_stalled) for _ in range(ROUNDS))
    found.append(Row(f"publish, {STALLED} stalled readers", full, bare=limit, target="< 50 us, so > 20 k/s"))
    none = median(trio.run(publish_alone, 0) for _ in range(ROUNDS))
    found.append(Row("publish, no reader", none, target="a few us"))
    if any(not math.isfinite(row.ours) for row in found):
        raise RuntimeError("a benchmark gave no number")
    return found


def main() -> None:
    """Print the rows."""
    show(rows())


if __name__ == "__main__":
    main()
