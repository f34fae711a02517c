"""`wait_idle` returns when a tree has come to rest, and says who does not."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from omniactors import ActorRef, Backoff, ChildSpec, DynamicSupervisor, Intensity, open_supervisor, pool, subtree
from omniactors.testing import (
    Crash,
    FaultPlan,
    Hang,
    Notices,
    at_message,
    at_start,
    busy_children,
    faulty,
    wait_idle,
)
from tests.testing.support import Add, Boom, Counter, Moody, Nap, Total, actor


async def test_it_waits_for_queues_and_handlers_as_long_as_they_take(autojump_clock: MockClock) -> None:
    async with open_supervisor(Counter) as sup:
        counter = actor(sup, "Counter-1")
        counter.tell_nowait(Nap(3600))
        counter.tell_nowait(Nap(3600))
        counter.tell_nowait(Add(5))
        await wait_idle(sup)
        assert trio.current_time() == 7200
        assert await counter.ask(Total()) == 5


async def test_it_returns_without_time_passing_when_there_is_nothing_to_do(autojump_clock: MockClock) -> None:
    async with open_supervisor(Counter, subtree(Counter, name="inner")) as sup, trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 10)
        await wait_idle(sup)
        assert trio.current_time() == 0


async def test_it_waits_for_a_restart_with_backoff(autojump_clock: MockClock) -> None:
    async with open_supervisor(ChildSpec(Counter, backoff=Backoff(initial=30, jitter=0))) as sup:
        counter = actor(sup, "Counter-1")
        counter.tell_nowait(Boom())
        await wait_all_tasks_blocked()
        assert busy_children(sup) == ["supervisor/Counter-1 is restarting"]
        await wait_idle(sup)
        assert (counter.status, counter.incarnation) == ("running", 2)
        assert trio.current_time() == 30


@pytest.mark.parametrize("kind", ["pool", "subtree", "dynamic"])
async def test_it_sees_into_nested_trees(kind: str, autojump_clock: MockClock) -> None:
    async with open_supervisor() as sup:
        if kind == "pool":
            ref: ActorRef[Any] = await sup.start_child(pool(Counter, size=2))
        elif kind == "subtree":
            ref = actor((await sup.start_child(subtree(Counter))).value, "Counter-1")
        else:
            ref = await (await sup.start_child(DynamicSupervisor())).value.start_child(Counter)
        for _ in range(3):
            ref.tell_nowait(Nap(10))
        await wait_all_tasks_blocked()
        assert len(busy_children(sup)) >= 2
        await wait_idle(sup)
        assert trio.current_time() == (20 if kind == "pool" else 30)


async def test_another_tree_does_not_matter(autojump_clock: MockClock) -> None:
    async with open_supervisor(Counter) as one, open_supervisor(Counter) as other:
        actor(other, "Counter-1").tell_nowait(Nap(10))
        await wait_idle(one)
        assert trio.current_time() == 0
        assert len(busy_children(other)) == 1


@pytest.mark.parametrize("point", [at_start, at_message])
async def test_who_hangs_is_named_with_the_place(point: object, autojump_clock: MockClock) -> None:
    hang = Hang()
    plan = FaultPlan(at_start(hang, nth=2), at_message(Crash())) if point is at_start else FaultPlan(at_message(hang))
    async with open_supervisor(faulty(Counter, plan)) as sup:
        counter = actor(sup, "Counter-1")
        counter.tell_nowait(Add())
        counter.tell_nowait(Add())
        with pytest.raises(AssertionError, match=r"do not come to rest:\n  supervisor/Counter-1") as raised:
            await wait_idle(sup)
        assert "1 queued" in str(raised.value)
        assert ("is starting" in str(raised.value)) == (point is at_start)
        assert "faults" in str(raised.value) or "faulty.py" in str(raised.value)
        hang.release()
        await wait_idle(sup)


async def test_a_clock_that_stands_still_is_not_waited_for(mock_clock: MockClock) -> None:
    async with open_supervisor(Counter) as sup:
        actor(sup, "Counter-1").tell_nowait(Nap(5))
        with pytest.raises(AssertionError, match=r"supervisor/Counter-1 is in Counter\.nap \(support\.py:"):
            await wait_idle(sup)
        mock_clock.jump(5)
        await wait_idle(sup)


async def test_on_the_real_clock_it_sees_what_a_thread_brings() -> None:
    class Slow(Counter):
        async def on_start(self) -> None:
            self.sum = await trio.to_thread.run_sync(lambda: 7)

    notices = Notices()
    async with open_supervisor(Slow, emit=notices, intensity=Intensity(3, 5)) as sup:
        slow = actor(sup, "Slow-1")
        slow.tell_nowait(Boom())
        slow.tell_nowait(Nap(0.01))
        with trio.fail_after(10):
            await wait_idle(sup)
        assert slow.incarnation == 2
        assert await slow.ask(Total()) == 7


async def test_background_work_does_not_count_and_what_an_actor_became_does(autojump_clock: MockClock) -> None:
    async with open_supervisor(Moody) as sup:
        moody = actor(sup, "Moody-1")
        await wait_idle(sup)
        assert trio.current_time() == 0
        moody.tell_nowait(Nap(0))
        moody.tell_nowait(Add(1))
        await wait_idle(sup)
        assert trio.current_time() == 100
        assert await moody.ask(Total()) == 10
