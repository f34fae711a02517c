"""Ask: round trips per second from one task to one actor, and starts of a supervised child.

The bare limit of a round trip is two task switches; the anchors are a pykka actor and a pair of trio
memory channels. Run: python -m tests.benchmarks.ask
"""

from __future__ import annotations

import time
from statistics import median

import trio
import trio.testing

from omniactors import open_supervisor
from tests.benchmarks.report import Row, show
from tests.benchmarks.tell import Counter, Total

try:
    import pykka

    HAS_PYKKA = True
except ModuleNotFoundError:  # the `bench` extra is not installed
    HAS_PYKKA = False

TRIPS = 20_000
STARTS = 3_000
ROUNDS = 3


async def ours() -> float:
    """Round trips per second."""
    async with open_supervisor() as sup:
        counter = await sup.start_child(Counter)
        message = Total()
        begun = time.perf_counter()
        for _ in range(TRIPS):
            await counter.ask(message)
        return TRIPS / (time.perf_counter() - begun)


async def bare() -> float:
    """Two task switches: each of two tasks wakes the other and sleeps."""
    sleeping: list[trio.lowlevel.Task] = []

    async def switch() -> None:
        if sleeping:
            trio.lowlevel.reschedule(sleeping.pop())
        sleeping.append(trio.lowlevel.current_task())
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)

    async def answer() -> None:
        while True:
            await switch()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await trio.testing.wait_all_tasks_blocked()
        begun = time.perf_counter()
        for _ in range(TRIPS):
            await switch()
        elapsed = time.perf_counter() - begun
        nursery.cancel_scope.cancel()
    return TRIPS / elapsed


async def channels() -> float:
    """Round trips per second over two memory channels without room."""
    to_send, to_receive = trio.open_memory_channel[int](0)
    back_send, back_receive = trio.open_memory_channel[int](0)

    async def answer() -> None:
        async for number in to_receive:
            await back_send.send(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        begun = time.perf_counter()
        for number in range(TRIPS):
            await to_send.send(number)
            await back_receive.receive()
        elapsed = time.perf_counter() - begun
        nursery.cancel_scope.cancel()
    return TRIPS / elapsed


def pykka_rate() -> float | None:
    """Round trips per second to a pykka actor; None when pykka is missing."""
    if not HAS_PYKKA:
        return None

    class PykkaCounter(pykka.ThreadingActor):
        def on_receive(self, message: object) -> object:
            return message

    ref = PykkaCounter.start()
    trips = TRIPS // 5
    begun = time.perf_counter()
    for _ in range(trips):
        ref.ask(1)
    elapsed = time.perf_counter() - begun
    ref.stop()
    return trips / elapsed


async def starts() -> float:
    """Supervised starts per second of an async function."""

    async def child(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep_forever()

    async with open_supervisor() as sup:
        begun = time.perf_counter()
        for _ in range(STARTS):
            await sup.start_child(child)
        return STARTS / (time.perf_counter() - begun)


async def bare_starts() -> float:
    """Starts per second with `nursery.start`."""

    async def child(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        begun = time.perf_counter()
        for _ in range(STARTS):
            await nursery.start(child)
        elapsed = time.perf_counter() - begun
        nursery.cancel_scope.cancel()
    return STARTS / elapsed


def rows() -> list[Row]:
    """Measure everything here; some seconds. The rounds alternate, so that a noisy moment hits all alike."""
    trips = [(trio.run(ours), trio.run(bare), trio.run(channels), pykka_rate() or 0.0) for _ in range(ROUNDS)]
    mine, limit, plain, threads = (median(rates) for rates in zip(*trips, strict=True))
    both = [(trio.run(starts), trio.run(bare_starts)) for _ in range(ROUNDS)]
    started, start_limit = (median(rates) for rates in zip(*both, strict=True))
    anchors = {"pykka": threads or None, "trio channels": plain}
    return [
        Row("ask, one after the other", mine, anchors, limit, ">= 1x trio channels, >= 2x pykka"),
        Row("supervised start of a child", started, bare=start_limit, target=">= 0.4x nursery.start"),
    ]


def main() -> None:
    """Print the rows."""
    show(rows())


if __name__ == "__main__":
    main()
