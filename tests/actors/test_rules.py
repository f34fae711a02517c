"""The pure rules: exit reasons, restart types, groups, the window, and the schedule of backoffs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from omniactors import Backoff, ChildSpec, ExitReason, Intensity, Shutdown
from omniactors.actors.roster import Roster
from omniactors.actors.rules import (
    RestartType,
    RestartWindow,
    crash_part,
    escaping_part,
    exit_reason,
    restart_group,
    should_restart,
)
from omniactors.actors.schedule import RestartSchedule
from omniactors.actors.specs import Flags
from omniactors.actors.supervisor import Supervisor
from tests.actors.otp import statement

if TYPE_CHECKING:
    from omniactors.actors.slot import Slot

CRASH = ExitReason.crash(ValueError())


def cancelled() -> trio.Cancelled:
    async def main() -> trio.Cancelled:
        caught: list[trio.Cancelled] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                caught.append(error)
                raise
        return caught[0]

    return trio.run(main)


@pytest.mark.parametrize(
    ("restart", "restarted"),
    [
        ("permanent", {"normal", "shutdown", "killed", "crash"}),
        ("transient", {"killed", "crash"}),
        ("temporary", set()),
    ],
)
@statement(51, "permanent_normal", "permanent_shutdown", "permanent_abnormal")
@statement(52, "transient_normal", "transient_shutdown", "transient_abnormal")
@statement(53, "temporary_normal", "temporary_shutdown", "temporary_abnormal")
def test_restart_types(restart: RestartType, restarted: set[str]) -> None:
    reasons = [ExitReason.NORMAL, ExitReason.SHUTDOWN, ExitReason.KILLED, CRASH]
    assert {reason.kind for reason in reasons if should_restart(restart, reason)} == restarted


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_exit_reasons(asked: bool, killed: bool) -> None:
    """S0, C2: a crash is a crash whoever cancels; the exception alone does not tell the rest."""
    error = ValueError()
    assert exit_reason(error, asked=asked, killed=killed) == ExitReason.crash(error)
    mixed = exit_reason(BaseExceptionGroup("", [cancelled(), error]), asked=asked, killed=killed)
    assert mixed.kind == "crash"
    assert mixed.matches(ValueError)
    assert not mixed.matches(KeyError)
    assert exit_reason(Shutdown(), asked=asked, killed=killed).kind == "shutdown"
    returned = "killed" if killed else "shutdown" if asked else "normal"
    assert exit_reason(None, asked=asked, killed=killed).kind == returned
    assert exit_reason(cancelled(), asked=asked, killed=killed).kind == (
        "shutdown" if returned == "shutdown" else "killed"
    )


def test_what_a_supervisor_may_not_keep() -> None:
    assert escaping_part(ValueError()) is None
    interrupt = KeyboardInterrupt()
    assert escaping_part(interrupt) is interrupt
    part = escaping_part(BaseExceptionGroup("", [interrupt, ValueError()]))
    assert isinstance(part, BaseExceptionGroup)
    assert part.exceptions == (interrupt,)
    assert crash_part(cancelled()) is None


@statement(59, "one_for_one")
@statement(60, "one_for_all")
@statement(61, "rest_for_one", "order_of_children")
def test_groups() -> None:
    children = ["e", "a", "d"]
    assert restart_group("one_for_one", children, "a") == ["a"]
    assert restart_group("one_for_all", children, "a") == ["e", "a", "d"]
    assert restart_group("rest_for_one", children, "a") == ["a", "d"]


@statement(70, "one_for_one")
@statement(71, "one_for_one")
@statement(72)
@statement(73, "multiple_restarts")
def test_the_window_slides_and_its_edge_counts() -> None:
    window = RestartWindow(Intensity(2, 10.0))
    assert [window.allow(now) for now in (0, 10, 20, 20)] == [True, True, True, False]
    window = RestartWindow(Intensity(2, 10.0))
    assert [window.allow(now) for now in (0, 5, 10)] == [True, True, False]
    assert not RestartWindow(Intensity(0, 1)).allow(0)


@given(st.lists(st.floats(0, 100), max_size=30), st.integers(0, 5), st.floats(0.1, 20))
def test_the_window_agrees_with_its_definition(gaps: list[float], restarts: int, period: float) -> None:
    window, times, now = RestartWindow(Intensity(restarts, period)), [0.0], 0.0
    times.clear()
    for gap in gaps:
        now += gap
        times.append(now)
        assert window.allow(now) == (sum(now - time <= period for time in times) <= restarts)


@pytest.mark.parametrize(
    ("restarts", "period"),
    [(-1, 5), (1.5, 5), (True, 5), (1, 0), (1, -1), (1, math.inf), (1, math.nan)],
)
@statement(5, "sup_flags")
def test_bad_intensities_are_refused(restarts: int, period: float) -> None:
    with pytest.raises(ValueError, match=r"Intensity\.(restarts|period) must be"):
        Intensity(restarts, period)


def slots(flags: Flags, count: int) -> list[Slot]:
    async def make() -> list[Slot]:  # in a run: the places of waiting children have their time
        specs = [ChildSpec(trio.sleep, 1) for _ in range(count)]
        return Roster(Supervisor(flags, [], path="s"), flags, specs).in_order()

    return trio.run(make)


@statement(78)
def test_the_windows_clock_stands_still_during_a_backoff() -> None:
    """A child that always fails still ends in GaveUp, however long its backoff."""
    flags = Flags(intensity=Intensity(2, 5.0), backoff=Backoff(initial=100))
    schedule, (slot,) = RestartSchedule(flags), slots(flags, 1)
    assert schedule.allow(0)
    schedule.put_off(slot, 100, now=0)
    assert schedule.take_due(99) is None
    assert schedule.take_due(100) is slot
    assert schedule.allow(101)
    schedule.put_off(slot, 100, now=101)
    assert schedule.take_due(201) is slot
    assert not schedule.allow(202)


def test_a_backoff_that_is_called_off_stops_no_clock() -> None:
    flags = Flags(intensity=Intensity(1, 5.0))
    schedule, (first, second) = RestartSchedule(flags), slots(flags, 2)
    schedule.put_off(first, 1000, now=0)
    schedule.put_off(second, 2000, now=0)
    schedule.call_off(first, now=1)
    schedule.call_off(first, now=1)
    assert schedule.next_due() == 2000
    assert schedule.allow(1)
    schedule.call_off(second, now=2)
    assert schedule.next_due() == math.inf
    assert schedule.allow(8)
    assert not schedule.allow(9)


def test_delays_grow_until_the_child_has_run_long_enough() -> None:
    flags = Flags(backoff=Backoff(initial=1, jitter=0, reset_after=10))
    schedule, (slot,) = RestartSchedule(flags), slots(flags, 1)
    slot.ready(now=0)
    assert [schedule.delay(slot, now, 0.0) for now in (1, 2, 9)] == [1, 2, 4]
    assert schedule.delay(slot, 10, 0.0) == 1
    slot.begin()  # and never ready: the time since it last was does not count
    assert schedule.delay(slot, 1000, 0.0) == 2


def test_every_restart_type_is_known_to_the_rule() -> None:
    assert {should_restart(restart, CRASH) for restart in get_args(RestartType)} == {True, False}
