"""`cancel_everywhere` reaches every step, and catches leaks, hangs, errors and broken promises."""

from __future__ import annotations

import pytest
import trio

from omniactors import open_supervisor
from omniactors.testing import cancel_everywhere
from tests.testing.support import Add, Counter, Total, actor


def test_a_cancel_comes_once_at_each_moment() -> None:
    ends: list[int] = []

    async def scenario() -> None:
        done = 0
        try:
            for _ in range(3):
                await trio.sleep(1)
                done += 1
        finally:
            ends.append(done)

    assert cancel_everywhere(scenario) == 7
    # Before it begins; in each sleep; at the end of each sleep; and at last not at all.
    assert ends == [0, 0, 0, 1, 1, 2, 2, 3]


def test_a_wait_that_is_over_already_is_not_cancelled_and_the_next_one_is() -> None:
    ends: list[str] = []

    async def scenario() -> None:
        gate = trio.Event()
        reached = "nothing"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_soon, gate)
            try:
                await gate.wait()
                reached = "gate"
                await trio.lowlevel.checkpoint()
                reached = "end"
            finally:
                ends.append(reached)

    async def open_soon(gate: trio.Event) -> None:
        await trio.sleep(1)
        gate.set()

    cancel_everywhere(scenario)
    assert set(ends) == {"nothing", "gate", "end"}


def test_a_sound_scenario_passes() -> None:
    async def scenario() -> None:
        async with open_supervisor(Counter) as sup:
            counter = actor(sup, "Counter-1")
            await counter.tell(Add())
            await counter.ask(Total())

    assert cancel_everywhere(scenario) > 10


def test_a_cleanup_that_a_cancel_breaks_is_caught() -> None:
    is_open = False

    async def scenario() -> None:
        nonlocal is_open
        is_open = True
        await trio.sleep(1)
        is_open = False

    def check() -> None:
        assert not is_open

    with pytest.raises(AssertionError) as raised:
        cancel_everywhere(scenario, check)
    assert raised.value.__notes__[0].startswith("with a cancellation at moment ")


def test_an_error_after_a_cancel_is_caught() -> None:
    async def scenario() -> None:
        try:
            await trio.sleep(1)
        except trio.Cancelled:
            raise ValueError("broken cleanup") from None

    with pytest.raises(ValueError, match="broken cleanup") as raised:
        cancel_everywhere(scenario)
    assert "at moment" in raised.value.__notes__[0]


@pytest.mark.parametrize("place", ["main", "child"])
def test_a_hang_is_caught_even_in_a_shield_and_shows_where(place: str) -> None:
    async def hang_in_cleanup() -> None:
        try:
            await trio.sleep(1)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()

    async def scenario() -> None:
        if place == "main":
            await hang_in_cleanup()
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hang_in_cleanup)

    with pytest.raises(AssertionError, match=r"the scenario hangs with a cancellation at moment \d+:\n") as raised:
        cancel_everywhere(scenario)
    assert "hang_in_cleanup" in str(raised.value)


def test_a_task_that_is_left_is_caught() -> None:
    async def stay() -> None:
        await trio.sleep_forever()

    async def scenario() -> None:
        trio.lowlevel.spawn_system_task(stay)
        await trio.sleep(1)

    with pytest.raises(AssertionError, match="tasks are left"):
        cancel_everywhere(scenario)
