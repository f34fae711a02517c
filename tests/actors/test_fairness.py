"""C13: whoever is busy lets others live. Turns are real time here, so bounds are wide and medians are compared."""

from __future__ import annotations

import time
from collections import Counter as Tally
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import trio

from omniactors import Actor, ActorRef, ChildSpec, Intensity, Mailbox, Request, on, open_supervisor, pool
from tests.actors.support import Counter, Total

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATIENCE = 20.0
"""Seconds after which a test of this file fails."""
LATE = 0.1
"""Seconds a timer may be late, in the median. An actor's turn is a hundredth of that."""
TICKS = 20
TICK = 0.005


@dataclass(frozen=True)
class Spin:
    """Handled by sending it again."""


class Hot(Actor[Spin]):
    """Always has a message, and never waits."""

    handled = 0

    @on
    async def spin(self, message: Spin) -> None:
        Hot.handled += 1
        self.ref.tell_nowait(message)


async def lateness() -> float:
    """Seconds by which a timer is late, in the median."""
    late = []
    for _ in range(TICKS):
        due = trio.current_time() + TICK
        await trio.sleep_until(due)
        late.append(trio.current_time() - due)
    return median(late)


async def test_two_hot_actors_and_a_timer() -> None:
    with trio.fail_after(PATIENCE):
        async with open_supervisor() as sup:
            for _ in range(2):
                (await sup.start_child(ChildSpec(Hot, shutdown=0))).tell_nowait(Spin())
            before = Hot.handled
            assert await lateness() < LATE
            assert Hot.handled > before + TICKS


async def test_hot_actors_that_tell_one_another_and_a_timer() -> None:
    """With `tell`, which is a checkpoint, and mailboxes that are full now and then."""

    class Pong(Actor[Spin]):
        def __init__(self) -> None:
            self.other: ActorRef[Spin] | None = None

        async def on_start(self) -> None:
            players.append(self)

        @on
        async def spin(self, message: Spin) -> None:
            assert self.other is not None
            await self.other.tell(message)

    players: list[Pong] = []
    with trio.fail_after(PATIENCE):
        async with open_supervisor() as sup:
            refs = [await sup.start_child(ChildSpec(Pong, shutdown=0)) for _ in range(2)]
            for player, other in zip(players, reversed(refs), strict=True):
                player.other = other
            for ref in refs:
                for _ in range(3):
                    ref.tell_nowait(Spin())
            assert await lateness() < LATE
            assert [ref.incarnation for ref in refs] == [1, 1]


async def test_a_hot_pool_and_a_timer() -> None:
    """As many hot actors as it has, all at one queue."""
    with trio.fail_after(PATIENCE):
        async with open_supervisor() as sup:
            crew = await sup.start_child(pool(Hot, size=4, shutdown=0))
            for _ in range(8):
                crew.tell_nowait(Spin())
            assert await lateness() < LATE


async def test_a_child_that_crashes_all_the_time_and_a_timer() -> None:
    async def broken() -> None:
        raise OSError

    with trio.fail_after(PATIENCE):
        async with open_supervisor(broken, intensity=Intensity(1_000_000, 1)) as sup:
            assert await lateness() < LATE
            assert sup.child("broken-1").incarnation > TICKS


async def test_a_hot_actor_does_not_starve_an_ask_to_another() -> None:
    with trio.fail_after(PATIENCE):
        async with open_supervisor(ChildSpec(Counter, id="cold")) as sup:
            for _ in range(2):
                (await sup.start_child(ChildSpec(Hot, shutdown=0))).tell_nowait(Spin())
            cold = sup.child("cold")
            assert isinstance(cold, ActorRef)
            assert await median_of(lambda: cold.ask(Total())) < LATE


async def test_a_hot_actor_does_not_starve_an_ask_to_itself() -> None:
    """Messages are handled in the order in which they came, so there is little before it."""

    class Answering(Actor[Spin | Total]):
        @on
        async def spin(self, message: Spin) -> None:
            self.ref.tell_nowait(message)

        @on
        async def total(self, _message: Total) -> int:
            return 1

    with trio.fail_after(PATIENCE):
        async with open_supervisor() as sup:
            hot = await sup.start_child(ChildSpec(Answering, shutdown=0))
            hot.tell_nowait(Spin())
            assert await median_of(lambda: hot.ask(Total())) < LATE


async def median_of(call: Callable[[], Awaitable[object]]) -> float:
    """Seconds that a call takes."""
    times = []
    for _ in range(TICKS):
        begun = time.perf_counter()
        await call()
        times.append(time.perf_counter() - begun)
    return median(times)


# -- storms of messages ---------------------------------------------------------------------------


class Halfway(Request[None]):
    """Waits until it is cancelled."""

    def __init__(self, reached: trio.Event) -> None:
        self.reached = reached


class Storm(Actor[int | Halfway]):
    """Counts what it handles, without ever waiting; in the middle it waits."""

    def __init__(self, handled: list[int]) -> None:
        self._handled = handled

    @on
    async def number(self, message: int) -> None:
        self._handled.append(message)

    @on
    async def halfway(self, message: Halfway) -> None:
        message.reached.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return  # what a careless handler may do: nothing is to be handled after it nevertheless


async def test_a_cancelled_actor_handles_no_further_message() -> None:
    """Cancellation is looked for at every message."""
    handled: list[int] = []
    async with open_supervisor() as sup:
        storm = await sup.start_child(ChildSpec(Storm, handled, mailbox=Mailbox(1000), shutdown=0))
        reached = trio.Event()
        for number in range(100):
            storm.tell_nowait(number)
        storm.tell_nowait(Halfway(reached))
        for number in range(100):
            storm.tell_nowait(number)
        await reached.wait()
        await storm.stop()
    assert handled == list(range(100))


async def test_a_storm_does_not_delay_the_end() -> None:
    """Neither a stop without grace nor an outer cancellation waits for what is queued."""
    queued = 300_000
    with trio.fail_after(PATIENCE):
        for stop_now in (True, False):
            handled: list[int] = []
            with trio.CancelScope() as scope:
                async with open_supervisor() as sup:
                    storm = await sup.start_child(ChildSpec(Storm, handled, mailbox=Mailbox(queued), shutdown=0))
                    for number in range(queued):
                        storm.tell_nowait(number)
                    await trio.lowlevel.checkpoint()
                    if stop_now:
                        await storm.stop_now()
                    else:
                        scope.cancel()
            assert len(handled) < queued / 3


async def test_a_hot_sender_does_not_starve_another() -> None:
    """Who waits for room is served in turn: among any few messages there are some of everybody."""
    order: list[str] = []

    class Taker(Actor[str]):
        @on
        async def take(self, sender: str) -> None:
            order.append(sender)

    async def send(name: str) -> None:
        for _ in range(50):
            await taker.tell(name)

    async with open_supervisor() as sup:
        taker = await sup.start_child(ChildSpec(Taker, mailbox=Mailbox(1)))
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(send, name)
    assert Tally(order) == {"a": 50, "b": 50, "c": 50}
    all_send = min(len(order) - 1 - order[::-1].index(name) for name in "abc")
    for begin in range(all_send - 9):
        assert set(order[begin : begin + 9]) == {"a", "b", "c"}, "".join(order)
