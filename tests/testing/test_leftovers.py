"""Leftover tasks are found wherever they hide, and nobody else's task is taken for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import Actor, on, open_supervisor
from omniactors.testing import no_leftover_tasks
from tests.testing.support import Add, Counter, actor

if TYPE_CHECKING:
    from trio.testing import MockClock


class Leaker(Actor[Any]):
    """Starts a task outside of itself for each message."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery

    @on
    async def leak(self, seconds: float) -> None:
        self.nursery.start_soon(trio.sleep, seconds, name="the leak")


async def run_leaker(nursery: trio.Nursery) -> None:
    async with no_leftover_tasks(), open_supervisor() as sup:
        leaker = await sup.start_child(Leaker, nursery)
        await leaker.ask(100.0)


async def test_a_tree_leaves_nothing() -> None:
    async with no_leftover_tasks(), open_supervisor(Counter) as sup:
        await actor(sup, "Counter-1").tell(Add())


async def test_a_task_in_an_outer_nursery_is_found(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(AssertionError, match=r"tasks are left:\n  the leak \(waits at \w+\.py:\d+ "):
            await run_leaker(nursery)
        nursery.cancel_scope.cancel()


async def test_a_task_of_a_task_is_found_with_its_place(autojump_clock: MockClock) -> None:
    async def mother(nursery: trio.Nursery) -> None:
        nursery.start_soon(child)

    async def child() -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with pytest.raises(AssertionError, match=r"child \(waits at test_leftovers\.py:\d+ .*child\)"):
            async with no_leftover_tasks():
                nursery.start_soon(mother, nursery)
        nursery.cancel_scope.cancel()


async def test_the_tasks_of_others_do_not_count(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:

        async def somebody_else(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
            async with trio.open_nursery() as own:
                task_status.started(own)
                for _ in range(3):
                    own.start_soon(trio.sleep, 10)
                    await trio.lowlevel.checkpoint()

        nursery.start_soon(trio.sleep, 10)
        async with no_leftover_tasks():
            await trio.lowlevel.checkpoint()
        await nursery.start(somebody_else)
        async with no_leftover_tasks():
            for _ in range(5):
                await trio.lowlevel.checkpoint()


async def test_a_task_that_ends_by_itself_is_no_leftover(autojump_clock: MockClock) -> None:
    async def brief() -> None:
        for _ in range(10):
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery, no_leftover_tasks():
        nursery.start_soon(brief)


async def test_blocks_nest() -> None:
    async def outer_block(nursery: trio.Nursery) -> None:
        async with no_leftover_tasks():
            nursery.start_soon(trio.sleep_forever)
            async with no_leftover_tasks():
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        with pytest.raises(AssertionError, match="tasks are left"):
            await outer_block(nursery)
        nursery.cancel_scope.cancel()


async def test_an_error_of_the_block_comes_first() -> None:
    async def fail(nursery: trio.Nursery) -> None:
        async with no_leftover_tasks():
            nursery.start_soon(trio.sleep_forever)
            raise ValueError("first")

    async with trio.open_nursery() as nursery:
        with pytest.raises(ValueError, match="first"):
            await fail(nursery)
        nursery.cancel_scope.cancel()
