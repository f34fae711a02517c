"""No message waits while somebody who could handle it sleeps, whatever else wakes, stops or holds the sleepers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from omniactors import (
    Actor,
    ActorRef,
    ActorStopped,
    Intensity,
    PoolRef,
    SupervisorClosed,
    on,
    open_supervisor,
    pool,
)
from omniactors.actors.lanes import Lane, Parker, Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

LONG, SHORT = 100.0, 0.5


@dataclass(frozen=True)
class Work:
    """Takes some time; crashes its actor then, if it `breaks`."""

    seconds: float
    breaks: bool = False


class Tick:
    """Of a timer; takes LONG."""


@dataclass(frozen=True)
class SetTimer:
    """Sets one."""

    seconds: float


class Member(Actor[Work | Tick | SetTimer]):
    """Notes what it does."""

    def __init__(self, log: dict[Work, float]) -> None:
        self._log = log

    @on
    async def work(self, message: Work) -> None:
        self._log[message] = trio.current_time()
        await trio.sleep(message.seconds)
        if message.breaks:
            raise ValueError

    @on
    async def tick(self, _message: Tick) -> None:
        await trio.sleep(LONG)

    @on
    async def set_timer(self, message: SetTimer) -> None:
        self.timers.once("tick", message.seconds, Tick())


async def crew_of(two: PoolRef[Work | Tick | SetTimer]) -> tuple[ActorRef[object], ActorRef[object]]:
    await trio.testing.wait_all_tasks_blocked()
    return two.value.child(1), two.value.child(2)


@pytest.mark.parametrize("direct", [1, 2])
@pytest.mark.parametrize("is_first", [True, False])
async def test_a_pools_message_goes_to_the_member_that_sleeps(
    autojump_clock: MockClock, direct: int, is_first: bool
) -> None:
    """One of them is woken, for the pool's message or for its own, and then there is the other kind too."""
    log: dict[Work, float] = {}
    async with open_supervisor() as sup:
        two = await sup.start_child(pool(Member, log, size=2, shutdown=0))
        one, _other = await crew_of(two)
        if not is_first:
            two.tell_nowait(Work(SHORT))
        for number in range(direct):
            one.tell_nowait(Work(LONG + number))
        if is_first:
            two.tell_nowait(Work(SHORT))
        await trio.sleep(SHORT)
        assert log[Work(SHORT)] == 0.0


async def test_a_pools_message_does_not_wait_for_a_timers_handler(autojump_clock: MockClock) -> None:
    """The member is woken for the message at the very moment in which its timer is due, and the timer goes first."""
    log: dict[Work, float] = {}
    async with open_supervisor() as sup:
        two = await sup.start_child(pool(Member, log, size=2, shutdown=0))
        one, other = await crew_of(two)
        for number in range(10):  # trio shuffles who is first of those that are due together
            due = trio.current_time() + 1
            one.tell_nowait(SetTimer(1))
            await trio.testing.wait_all_tasks_blocked()
            other.tell_nowait(Work(0, breaks=False))  # so that the first has slept longer
            await trio.sleep_until(due)
            two.tell_nowait(Work(SHORT + number))
            await trio.sleep_until(due + LONG)
            assert log[Work(SHORT + number)] == due
            await trio.testing.wait_all_tasks_blocked()


async def test_a_pools_message_does_not_wait_for_a_suspended_member(autojump_clock: MockClock) -> None:
    log: dict[Work, float] = {}
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        two = await sup.start_child(pool(Member, log, size=2, shutdown=0))
        one, _other = await crew_of(two)
        two.tell_nowait(Work(SHORT))  # for the first of them
        nursery.start_soon(one.suspend)
        await trio.sleep(SHORT)
        assert log[Work(SHORT)] == 0.0


async def test_a_pools_message_does_not_wait_for_a_member_that_is_cancelled(autojump_clock: MockClock) -> None:
    log: dict[Work, float] = {}
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        two = await sup.start_child(pool(Member, log, size=2, shutdown=0))
        one, _other = await crew_of(two)
        two.tell_nowait(Work(SHORT))
        nursery.start_soon(one.stop_now)
        await trio.sleep(SHORT)
        assert log[Work(SHORT)] == 0.0


def test_who_is_woken_leaves_all_lines_at_once() -> None:
    """And who finds something else to do first has the next one woken; with sleepers that only a test has."""

    class Bell(Lane):
        has_work = True

    async def main() -> None:
        first, second, bells = Parker(), Parker(), (Bell(), Bell())
        async with trio.open_nursery() as nursery:

            async def sleep(parker: Parker) -> None:
                await parker.park(bells)

            nursery.start_soon(sleep, first)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(sleep, second)
            await trio.testing.wait_all_tasks_blocked()
            bells[0].wake_one()
            assert not first.is_parked
            assert second.is_parked
            first.turn_to(bells[0])
            assert second.is_parked
            first.errand = bells[1]
            first.turn_to(None)
            assert bells[1].has_work
            assert second.errand is bells[1]
            bells[0].wake_one()  # nobody sleeps

    trio.run(main)


def test_a_cancelled_sleeper_takes_no_wake_up_along() -> None:
    class Bell(Source):
        has_work = True

    async def main() -> None:
        bell, parker = Bell(), Parker()
        with trio.move_on_after(0):
            await parker.park([bell])
        assert not parker.is_parked
        bell.wake_one()
        assert parker.errand is None

    trio.run(main)


# -- any mixture ----------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("pool"), st.sampled_from([SHORT, 3.0, LONG]), st.booleans()),
    st.tuples(st.just("direct"), st.integers(0, 9), st.sampled_from([SHORT, 3.0])),
    st.tuples(st.just("timer"), st.integers(0, 9), st.sampled_from([0.0, 1.0, 2.0])),
    st.tuples(st.just("suspend"), st.integers(0, 9)),
    st.tuples(st.just("resume"), st.integers(0, 9)),
    st.tuples(st.just("stop"), st.integers(0, 9)),
    st.tuples(st.just("resize"), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 1.0, 2.0])),
)


class Storm:
    """Does what the steps say to one pool, all in one tick but for the waits, and looks at it in between."""

    def __init__(self, two: PoolRef[Work | Tick | SetTimer], nursery: trio.Nursery) -> None:
        self._pool = two
        self._nursery = nursery
        self._suspended: set[int] = set()
        self._count = 0

    async def step(self, what: str, *args: float) -> None:
        if what == "wait":
            await trio.sleep(args[0])
            await trio.testing.wait_all_tasks_blocked()
            self._check()
        elif what == "resize":
            self._nursery.start_soon(self._pool.resize, int(args[0]))
        elif what == "pool":
            self._count += 1
            self._pool.tell_nowait(Work(args[0] + self._count / 1000, breaks=bool(args[1])))
        else:
            members = [ref for ref in self._pool.value.which_children() if ref.status == "running"]
            if members:
                self._to_member(what, members[int(args[0]) % len(members)], *args[1:])

    def _to_member(self, what: str, member: ActorRef[object], *args: float) -> None:
        match what:
            case "direct":
                member.tell_nowait(Work(args[0]))
            case "timer":
                member.tell_nowait(SetTimer(args[0]))
            case "suspend":
                self._suspended.add(id(member))
                self._nursery.start_soon(quietly, member.suspend)
            case "resume":
                # Perhaps before an earlier `suspend`: from the first one on, this one may sleep.
                self._nursery.start_soon(quietly, member.resume)
            case "stop":
                self._nursery.start_soon(quietly, member.stop_now)

    def _check(self) -> None:
        """With a message in the pool's queue nobody sleeps for want of one."""
        if not self._pool.queue.messages:
            return
        for member in self._pool.value.tree():
            if member.kind != "actor" or member.status != "running" or member.handling is not None:
                continue
            ref = self._pool.value.child(int(member.path.rpartition("/")[2]))
            assert id(ref) in self._suspended, f"{member.path} sleeps beside {self._pool.queue.messages}"


async def quietly(call: Callable[[], Awaitable[object]]) -> None:
    """Whether it is still there is not the question."""
    with trio.move_on_after(LONG):
        with contextlib.suppress(ActorStopped, SupervisorClosed):
            await call()


@given(st.lists(STEPS, max_size=25))
@settings(max_examples=300, deadline=None)
def test_no_message_waits_while_a_member_sleeps(steps: list[tuple[str, float, float]]) -> None:
    async def main() -> None:
        async with open_supervisor() as sup, trio.open_nursery() as nursery:
            two = await sup.start_child(
                pool(Member, {}, size=2, intensity=Intensity(1_000_000, 1.0), shutdown=SHORT, name="pool")
            )
            storm = Storm(two, nursery)
            await storm.step("wait", 0.0)
            for step in steps:
                await storm.step(*step)
            await storm.step("wait", 1.0)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
