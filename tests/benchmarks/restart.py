"""Restart: crashes and restarts per second of one child, by the number of its siblings; to be flat.

One round is an ask that crashes the actor and one that the next incarnation answers.
Run: python -m tests.benchmarks.restart
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, suppress
from statistics import median
from typing import TYPE_CHECKING

import trio

from omniactors import Actor, AskFailed, ChildSpec, DynamicSupervisor, Intensity, Request, on, open_supervisor
from tests.benchmarks.report import Row, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omniactors import ActorRef, Supervisor

STATIC = (10, 100, 1_000, 10_000, 100_000)
DYNAMIC = (10, 10_000)
RESTARTS = 300
FLAT = ">= 0.8x 10 siblings"
OFTEN = Intensity(1_000_000, 1)


class Boom(Request[None]):
    """Crashes the actor."""


class Life(Request[int]):
    """Asks which life this is."""


class Fragile(Actor[Boom | Life]):
    """The child that crashes."""

    @on
    async def boom(self, _message: Boom) -> None:
        """Crash."""
        raise ValueError("boom")

    @on
    async def life(self, _message: Life) -> int:
        """Tell it."""
        return self.ref.incarnation


async def crash(fragile: ActorRef[Boom | Life]) -> float:
    """Seconds of one round."""
    life = fragile.incarnation
    begun = time.perf_counter()
    with suppress(AskFailed):
        await fragile.ask(Boom())
    if await fragile.ask(Life()) != life + 1:
        raise RuntimeError("the actor was not restarted once, so this measured something else")
    return time.perf_counter() - begun


async def crash_all() -> list[float]:
    """Rounds per second by kind and number of siblings; the median, so that a collection of garbage does not count.

    All supervisors are there at once, and take turns, so that a noisy moment hits all alike.
    """
    async with AsyncExitStack() as stack:
        supervisors: list[Supervisor] = []
        for siblings in STATIC:
            specs = [ChildSpec(trio.sleep_forever) for _ in range(siblings)]
            supervisors.append(await stack.enter_async_context(open_supervisor(*specs, intensity=OFTEN)))
        for siblings in DYNAMIC:
            sup = await stack.enter_async_context(DynamicSupervisor(intensity=OFTEN))
            for _ in range(siblings):
                await sup.start_child(trio.sleep_forever)
            supervisors.append(sup)
        fragile = [await sup.start_child(Fragile) for sup in supervisors]
        times: list[list[float]] = [[] for _ in fragile]
        for _ in range(RESTARTS):
            for ref, taken in zip(fragile, times, strict=True):
                taken.append(await crash(ref))
        return [1 / median(taken) for taken in times]


def rows() -> list[Row]:
    """Measure everything here; some twenty seconds, most of them to start the siblings."""
    rates = trio.run(crash_all)
    static, dynamic = rates[: len(STATIC)], rates[len(STATIC) :]
    return [*compare("", STATIC, static), *compare(", dynamic", DYNAMIC, dynamic)]


def compare(kind: str, numbers: Sequence[int], rates: Sequence[float]) -> Iterator[Row]:
    """One row for each number of siblings, against the fewest."""
    for number, ours in zip(numbers, rates, strict=True):
        anchors = {} if number == numbers[0] else {f"{numbers[0]} siblings": rates[0]}
        yield Row(f"crash and restart, {number:,} siblings{kind}", ours, anchors, target=FLAT)


def main() -> None:
    """Print the rows."""
    show(rows())


if __name__ == "__main__":
    main()
