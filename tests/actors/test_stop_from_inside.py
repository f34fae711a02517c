"""`await sup.stop()`: from the block, from elsewhere, from a child, twice, cancelled."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors import (
    Actor,
    ChildSpec,
    DeadlockError,
    DynamicSupervisor,
    Supervisor,
    on,
    open_supervisor,
    run_supervisor,
    subtree,
)
from tests.actors.support import Counter, cancel_everywhere

if TYPE_CHECKING:
    from trio.testing import MockClock


class Slow(Counter):
    """Takes its time to stop."""

    seconds = 5.0

    async def on_stop(self, _reason: object) -> None:
        await trio.sleep(self.seconds)


async def test_in_its_block_it_returns_when_all_have_ended_and_the_block_goes_on(autojump_clock: MockClock) -> None:
    seen: list[float] = []
    async with open_supervisor(ChildSpec(Slow, shutdown=9), Counter) as sup:
        await sup.stop()
        seen.append(trio.current_time())
        assert sup.count_children().active == 0
        await trio.sleep(1)
        await sup.stop()
        seen.append(trio.current_time())
    await sup.stop()
    assert seen == [5, 6]


async def test_elsewhere_it_ends_the_block_too(autojump_clock: MockClock) -> None:
    seen: list[str] = []

    async def stop(sup: Supervisor) -> None:
        await sup.stop()
        seen.append("stopped")

    async with trio.open_nursery() as nursery:
        async with open_supervisor(ChildSpec(Slow, shutdown=9)) as sup:
            nursery.start_soon(stop, sup)
            nursery.start_soon(stop, sup)
            await trio.sleep(1000)
        seen.append("left")
    assert sorted(seen) == ["left", "stopped", "stopped"]
    assert trio.current_time() == 5


async def test_its_deadline_bounds_it_and_belongs_to_the_stop_and_not_to_who_asked(autojump_clock: MockClock) -> None:
    async with open_supervisor(ChildSpec(Slow, shutdown=math.inf), stop_deadline=100) as sup:
        with trio.move_on_after(1):
            await sup.stop(deadline=2)
        assert trio.current_time() == 1
        await sup.stop()
        assert trio.current_time() == 2


@pytest.mark.parametrize("deadline", [-1, math.nan])
async def test_a_deadline_that_is_none_is_refused(deadline: float) -> None:
    async with open_supervisor(Counter) as sup:
        with pytest.raises(ValueError, match="deadline must be a number of seconds"):
            await sup.stop(deadline=deadline)
        assert sup.count_children().active == 1


class Stopper(Actor[str]):
    """Stops the supervisor that it is given."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found

    @on
    async def stop_it(self, name: str) -> str:
        try:
            await self.found[name].stop()
        except DeadlockError as error:
            return str(error)
        return "stopped"


async def test_an_actor_inside_gets_a_sentence_and_may_stop_others() -> None:
    found: dict[str, Any] = {}
    async with (
        open_supervisor(name="other") as other,
        open_supervisor(subtree(ChildSpec(Stopper, found), name="inner"), Counter, name="app") as sup,
    ):
        inner = sup.child("inner").value
        found |= {"app": sup, "inner": inner, "other": other}
        stopper = inner.child("Stopper-1")
        assert await stopper.ask("app") == "this would wait for ever: app/inner/Stopper-1 -> app"
        assert await stopper.ask("inner") == "this would wait for ever: app/inner/Stopper-1 -> app/inner"
        assert await stopper.ask("other") == "stopped"
        assert sup.count_children().active == 2


async def test_a_function_inside_is_cancelled_like_any_child() -> None:
    seen: list[str] = []

    async def child(found: dict[str, Supervisor]) -> None:
        await trio.lowlevel.checkpoint()
        try:
            await found["sup"].stop()
        finally:
            seen.append("cancelled")

    found: dict[str, Supervisor] = {}
    with trio.fail_after(5):
        async with open_supervisor() as sup:
            found["sup"] = sup
            await sup.start_child(child, found)
            await trio.sleep(1000)
    assert seen == ["cancelled"]


async def test_a_dynamic_supervisor_and_one_in_a_nursery_are_stopped_alike() -> None:
    async with DynamicSupervisor() as dynamic:
        await dynamic.start_child(Counter)
        await dynamic.stop()
        assert dynamic.count_children().active == 0
    async with trio.open_nursery() as nursery:
        sup = await nursery.start(run_supervisor, subtree(Counter, name="mine"))
        await sup.stop()
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks
    await DynamicSupervisor().stop()  # it never ran


def test_cancelled_anywhere_it_still_stops_in_order() -> None:
    async def scenario() -> None:
        async with open_supervisor(Counter, Counter) as sup:
            await sup.stop(deadline=10)
            assert sup.count_children().active == 0
        assert sup.count_children().active == 0

    assert cancel_everywhere(scenario) > 5
