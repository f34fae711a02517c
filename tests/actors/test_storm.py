"""Storms: trees of actors that crash, ask, stop and start one another at random; every run has to end in order."""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from omniactors import (
    Actor,
    ActorRef,
    Backoff,
    ChildExited,
    ChildSpec,
    ChildStarted,
    ChildStartError,
    ChildStopped,
    DynamicSupervisor,
    GaveUp,
    Ignore,
    Intensity,
    Mailbox,
    OmniActorsError,
    on,
    open_supervisor,
    pool,
    subtree,
)
from tests.actors.otp import statement
from tests.actors.support import HANG

STORMS = 40


class Storm:
    """One run: its dice, its actors, and how many lives of each child are open."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.refs: list[ActorRef[Any]] = []
        self.lives: Counter[str] = Counter()

    def chance(self, probability: float) -> bool:
        return self.dice.random() < probability

    def any_ref(self) -> ActorRef[Any]:
        return self.dice.choice(self.refs)

    def emit(self, notice: object) -> None:
        if isinstance(notice, ChildStarted):
            self.lives[notice.path] += 1
        elif isinstance(notice, ChildStopped | ChildExited):
            self.lives[notice.path] -= 1

    def specs(self, count: int, trouble: float) -> list[ChildSpec]:
        return [self.spec(trouble) for _ in range(count)]

    def spec(self, trouble: float) -> ChildSpec:
        pick = self.dice.choice
        return ChildSpec(
            Ship,
            self,
            trouble,
            restart=pick(["permanent", "permanent", "transient", "temporary"]),
            shutdown=pick([0, 1, 5, math.inf]),
            mailbox=Mailbox(pick([1, 2, 100]), pick(["wait", "wait", "reject", "drop_oldest"])),
            on_crash=pick([None, "dead_letter"]),
        )


class Ship(Actor[int]):
    """Does something foolish now and then; a message is how many others may be asked on its behalf."""

    def __init__(self, storm: Storm, trouble: float) -> None:
        self.storm = storm
        self.trouble = trouble

    async def on_start(self) -> None:
        await trio.sleep(self.storm.dice.choice([0, 0, 0.1]))
        if self.storm.chance(self.trouble):
            raise self.storm.dice.choice([OSError, Ignore])
        if self.storm.refs and self.storm.chance(self.trouble):
            await self.ask_somebody()

    async def on_stop(self, reason: object) -> None:
        if self.storm.chance(0.3):
            await self.ask_somebody()

    async def ask_somebody(self) -> None:
        try:
            await self.storm.any_ref().ask(2)
        except OmniActorsError:
            return

    @on
    async def sail(self, left: int) -> None:
        roll = self.storm.dice.random()
        if roll < 0.1:
            raise ValueError
        if roll < 0.15:
            self.stop()
        elif roll < 0.2:
            await trio.sleep(self.storm.dice.random())
        elif roll < 0.5:
            await self.storm.any_ref().ask(left - 1)
        elif roll < 0.6:
            await self.storm.any_ref().tell(left - 1)
        elif roll < 0.63:
            await self.supervisor.start_child(self.storm.spec(0.05))
        elif roll < 0.66:
            await self.storm.any_ref().stop()


async def client(storm: Storm) -> None:
    while True:
        ref = storm.any_ref()
        with trio.move_on_after(storm.dice.choice([0.5, 5, math.inf])):
            try:
                await (ref.ask(3) if storm.chance(0.5) else ref.tell(3))
            except OmniActorsError:
                await trio.lowlevel.checkpoint()
        await trio.sleep(storm.dice.random() * 0.2)


async def sail(storm: Storm) -> None:
    trio.lowlevel.spawn_system_task(watch)
    pick = storm.dice.choice
    intensity, backoff = Intensity(pick([3, 1000]), 5), pick([None, Backoff(initial=0.2, maximum=2)])
    strategies: list[Any] = [pick(["one_for_one", "one_for_all", "rest_for_one"]) for _ in range(2)]
    dynamic = DynamicSupervisor(intensity=Intensity(1000, 1))
    inner = subtree(*storm.specs(3, 0.02), strategy=strategies[0], intensity=intensity, backoff=backoff)
    children = [*storm.specs(3, 0), inner, pool(Ship, storm, 0.0, size=2), dynamic]
    deadline = pick([math.inf, 50, 1])
    with trio.move_on_after(pick([0.05, 3, 30])):
        async with open_supervisor(
            *children,
            strategy=strategies[1],
            intensity=intensity,
            backoff=backoff,
            stop_deadline=deadline,
            emit=storm.emit,
        ) as sup:
            found = [*sup.which_children(), *sup.child("subtree-1").value.which_children()]
            storm.refs.extend(ref for ref in found if isinstance(ref, ActorRef))
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(client, storm)
                for _ in range(pick([0, 5])):
                    with trio.move_on_after(storm.dice.random()), contextlib.suppress(OmniActorsError):
                        storm.refs.append(await dynamic.start_child(ChildSpec(Ship, storm, 0.0)))


async def watch() -> None:
    await trio.sleep(HANG)
    raise AssertionError("the storm does not end")


@pytest.mark.parametrize("seed", range(STORMS))
@statement(91)
def test_a_storm_ends_in_order(seed: int) -> None:
    """C1, C5, C14, C15: nothing hangs, though grace times may be infinite; who started has ended."""
    storm = Storm(seed)
    with contextlib.suppress(GaveUp, ChildStartError):
        trio.run(sail, storm, clock=MockClock(autojump_threshold=0))
    assert {ref.status for ref in storm.refs} <= {"stopped"}
    assert set(storm.lives.values()) <= {0}
