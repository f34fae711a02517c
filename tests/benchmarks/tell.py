"""Tell: messages per second from one producer to one actor with a typed handler, handling included.

The bare limit is a deque, a dispatch table and one await a message. The anchors are a pykka actor,
and a trio memory channel with a task that reads it. Run: python -m tests.benchmarks.tell
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from statistics import median

import trio

from omniactors import Actor, ChildSpec, Mailbox, Request, on, open_supervisor
from tests.benchmarks.report import Row, show

try:
    import pykka

    HAS_PYKKA = True
except ModuleNotFoundError:  # the `bench` extra is not installed
    HAS_PYKKA = False

MESSAGES = 200_000
SLOW_MESSAGES = 40_000
"""For anchors that take their time."""
BURST = 100
"""Messages between two checkpoints of the producer."""
ROUNDS = 3


@dataclass(frozen=True)
class Add:
    """The message."""

    amount: int


class Total(Request[int]):
    """Asked at the end: its reply proves that all messages were handled."""


class Counter(Actor[Add | Total]):
    """The actor."""

    def __init__(self) -> None:
        self.sum = 0

    @on
    async def add(self, message: Add) -> None:
        """Count."""
        self.sum += message.amount

    @on
    async def total(self, _message: Total) -> int:
        """Tell the count."""
        return self.sum


async def ours(*, waits: bool) -> float:
    """Messages per second, with `tell_nowait` in bursts, or with `tell`."""
    async with open_supervisor() as sup:
        counter = await sup.start_child(ChildSpec(Counter, mailbox=Mailbox(MESSAGES)))
        message = Add(1)
        begun = time.perf_counter()
        if waits:
            for _ in range(SLOW_MESSAGES):
                await counter.tell(message)
            count = SLOW_MESSAGES
        else:
            for _ in range(MESSAGES // BURST):
                for _ in range(BURST):
                    counter.tell_nowait(message)
                await trio.lowlevel.checkpoint()
            count = MESSAGES
        if await counter.ask(Total()) != count:
            raise RuntimeError("messages were lost, so this measured something else")
        return count / (time.perf_counter() - begun)


async def bare() -> float:
    """Messages per second of the least that could work."""
    queue: deque[object] = deque()
    counter = Counter()
    table = {Add: Counter.add}
    message = Add(1)
    begun = time.perf_counter()
    for _ in range(MESSAGES // BURST):
        for _ in range(BURST):
            queue.append(message)
        while queue:
            taken = queue.popleft()
            await table[type(taken)](counter, taken)  # type: ignore[index, arg-type]
        await trio.lowlevel.checkpoint()
    return MESSAGES / (time.perf_counter() - begun)


async def channel() -> float:
    """Messages per second through a memory channel, one `send` and one `receive` each."""
    sending, receiving = trio.open_memory_channel[Add](SLOW_MESSAGES)
    message = Add(1)

    async def read() -> None:
        count = 0
        async for taken in receiving:
            count += taken.amount

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for _ in range(SLOW_MESSAGES):
            await sending.send(message)
        await sending.aclose()
    return SLOW_MESSAGES / (time.perf_counter() - begun)


def pykka_rate() -> float | None:
    """Messages per second of a pykka actor; None when pykka is missing."""
    if not HAS_PYKKA:
        return None

    class PykkaCounter(pykka.ThreadingActor):
        sum = 0

        def on_receive(self, message: object) -> int:
            if isinstance(message, Add):
                self.sum += message.amount
            return self.sum

    ref = PykkaCounter.start()
    message = Add(1)
    begun = time.perf_counter()
    for _ in range(SLOW_MESSAGES):
        ref.tell(message)
    ref.ask(Total())
    elapsed = time.perf_counter() - begun
    ref.stop()
    return SLOW_MESSAGES / elapsed


def rows() -> list[Row]:
    """Measure everything here; some seconds. The rounds alternate, so that a noisy moment hits all alike."""
    rounds = [
        (
            trio.run(lambda: ours(waits=False)),
            trio.run(lambda: ours(waits=True)),
            trio.run(bare),
            trio.run(channel),
            pykka_rate() or 0.0,
        )
        for _ in range(ROUNDS)
    ]
    nowait, waiting, limit, plain, threads = (median(rates) for rates in zip(*rounds, strict=True))
    anchors = {"pykka": threads or None, "trio channel": plain}
    return [
        Row("tell_nowait, one producer, one actor", nowait, anchors, limit, ">= 8x pykka, >= 8x trio channel"),
        Row("tell, a checkpoint each", waiting, anchors, limit, ">= 1x trio channel"),
    ]


def main() -> None:
    """Print the rows."""
    show(rows())


if __name__ == "__main__":
    main()
