"""Dynamic supervisors and pools."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors import (
    AskFailed,
    ChildSpec,
    ChildStartError,
    DynamicSupervisor,
    GaveUp,
    Ignore,
    Intensity,
    Mailbox,
    MailboxFull,
    MessagesLost,
    TooManyChildren,
    open_supervisor,
    pool,
)
from tests.actors.otp import statement
from tests.actors.support import Add, Boom, Counter, Hold, Leave, Notices, Total, cancel_everywhere

if TYPE_CHECKING:
    from trio.testing import MockClock


async def slow_start(seconds: float, *, task_status: trio.TaskStatus[None]) -> None:
    await trio.sleep(seconds)
    task_status.started()
    await trio.sleep_forever()


async def slow_stop(seconds: float) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)


# -- dynamic supervisors --------------------------------------------------------------------------


@statement(87, "simple_one_for_one_shutdown", "sup_stop_timeout_dynamic")
async def test_children_start_and_stop_at_the_same_time(autojump_clock: MockClock) -> None:
    """One slow start or stop holds up nobody; all take as long as the longest."""
    async with DynamicSupervisor() as sup:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sup.start_child, slow_start, 5)
            nursery.start_soon(sup.start_child, slow_start, 3)
            await wait_all_tasks_blocked()
            counter = await sup.start_child(Counter)
            assert trio.current_time() == 0
            assert await counter.ask(Total()) == 0
        assert trio.current_time() == 5
        for seconds in (1, 4, 2):
            await sup.start_child(ChildSpec(slow_stop, seconds))
        assert sup.count_children() == (6, 6, 0, 6)
        await wait_all_tasks_blocked()
    assert trio.current_time() == 5 + 4


@statement(
    20, "sup_start_ignore_temporary_child_start_child_simple", "sup_start_ignore_permanent_child_start_child_simple"
)
@statement(45, "count_restarting_children")
@statement(49, "do_not_save_child_specs_for_temporary_children")
async def test_a_child_that_has_ended_is_forgotten(autojump_clock: MockClock) -> None:

    async def not_wanted_yet(*, task_status: trio.TaskStatus[None]) -> None:
        raise Ignore

    async with DynamicSupervisor() as sup:
        restarts: list[Literal["permanent", "transient", "temporary"]] = ["permanent", "transient", "temporary"]
        for restart in restarts:
            ref = await sup.start_child(ChildSpec(not_wanted_yet, restart=restart))
            assert ref.status == "stopped"
        await sup.start_child(ChildSpec(trio.sleep, 1, id="x"))
        counter = await sup.start_child(ChildSpec(Counter, restart="transient"))
        await counter.tell(Boom())
        await wait_all_tasks_blocked()
        assert counter.incarnation == 2
        await counter.tell(Leave())
        await trio.sleep(2)
        assert sup.count_children().specs == 0
        await sup.start_child(ChildSpec(trio.sleep, 1, id="x"))


@statement(30, "sup_start_child_returns_error", "sup_start_child_returns_error_simple")
async def test_a_failed_start_leaves_nothing() -> None:

    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        raise OSError

    async with DynamicSupervisor(intensity=Intensity(0, 1)) as sup:
        with pytest.raises(ChildStartError):
            await sup.start_child(fails)
        assert sup.which_children() == []


async def test_there_are_never_more_than_max_children(autojump_clock: MockClock) -> None:
    """Also when they are started at the same time."""
    refused = 0

    async def start() -> None:
        nonlocal refused
        try:
            await sup.start_child(slow_start, 1)
        except TooManyChildren:
            refused += 1

    async with DynamicSupervisor(max_children=3) as sup:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(start)
        assert (refused, len(sup.which_children())) == (2, 3)
        await sup.which_children()[0].stop()
        await sup.start_child(Counter)
    for wrong in (0, math.nan, -1):
        with pytest.raises(ValueError, match="max_children"):
            DynamicSupervisor(max_children=wrong)


@statement(10, "child_specs", "significant_simple")
async def test_there_are_no_significant_children() -> None:
    async with DynamicSupervisor() as sup:
        with pytest.raises(ValueError, match="significant"):
            await sup.start_child(ChildSpec(trio.sleep, 1, significant=True))


@statement(57, "simple_one_for_one", "simple_one_for_one_extra")
@statement(70, "one_for_one")
async def test_a_dynamic_supervisor_gives_up_too() -> None:
    """Restarts use the arguments of start_child."""
    with pytest.raises(GaveUp):  # noqa: PT012 -- the block is what is tested
        async with DynamicSupervisor(intensity=Intensity(2, 5)) as sup:
            refs = [await sup.start_child(Counter, number) for number in range(3)]
            for number in (0, 1):
                await refs[number].tell(Boom())
                assert await refs[number].ask(Total()) == number
            await refs[2].tell(Boom())
            await trio.sleep_forever()
    assert {ref.status for ref in refs} == {"stopped"}


@statement(48, "tree")
async def test_the_object_is_the_same_over_restarts_and_its_children_are_lost() -> None:
    dynamic = DynamicSupervisor(name="workers", intensity=Intensity(0, 1))
    async with open_supervisor(dynamic) as sup:
        first = await dynamic.start_child(Counter)
        assert first.path == "supervisor/workers/Counter-1"
        await first.tell(Boom())
        await first.wait_stopped()
        await wait_all_tasks_blocked()
        assert (sup.child("workers").value, sup.child("workers").incarnation) == (dynamic, 2)
        assert dynamic.which_children() == []
        await dynamic.start_child(Counter)
        with pytest.raises(RuntimeError, match="runs already"):
            async with dynamic:
                raise AssertionError


async def test_a_child_can_be_stopped_while_it_starts(autojump_clock: MockClock) -> None:
    async with DynamicSupervisor() as sup, trio.open_nursery() as nursery:

        async def start() -> None:
            with pytest.raises(ChildStartError):
                await sup.start_child(ChildSpec(slow_start, 100, id="x"))

        nursery.start_soon(start)
        await wait_all_tasks_blocked()
        await sup.stop_child("x")
        assert trio.current_time() == 0
        assert sup.which_children() == []


def test_cancelling_a_dynamic_supervisor_anywhere() -> None:
    notices = Notices()

    async def scenario() -> None:
        async with DynamicSupervisor(emit=notices) as sup, trio.open_nursery() as nursery:
            nursery.start_soon(sup.start_child, slow_start, 1)
            counter = await sup.start_child(Counter)
            await counter.tell(Boom())
            await counter.ask(Total())
            await counter.stop()
            await sup.start_child(slow_start, 2)

    def check() -> None:
        lines = notices.take()
        ends = sum(line.startswith(("stopped", "exited")) for line in lines)
        assert sum(line.startswith("started") for line in lines) == ends

    assert cancel_everywhere(scenario, check) > 15


# -- pools ----------------------------------------------------------------------------------------


async def test_whoever_is_free_takes_the_next_message() -> None:
    async with open_supervisor() as sup:
        counters = await sup.start_child(pool(Counter, size=3, name="counters"))
        assert counters.path == "supervisor/counters"
        gate = trio.Event()
        for _ in range(2):
            entered = trio.Event()
            await counters.tell(Hold(gate, entered))
            await entered.wait()
        for _ in range(10):
            await counters.tell(Add())
        assert await counters.ask(Total()) == 10
        assert counters.value.count_children().active == 3
        gate.set()


async def test_one_mailbox_bounds_the_pool() -> None:
    async with open_supervisor() as sup:
        counters = await sup.start_child(ChildSpec(pool(Counter, size=2), mailbox=Mailbox(2)))
        gate = trio.Event()
        for _ in range(2):
            entered = trio.Event()
            counters.tell_nowait(Hold(gate, entered))
            await entered.wait()
        for _ in range(2):
            counters.tell_nowait(Add())
        with pytest.raises(MailboxFull):
            counters.tell_nowait(Add())
        gate.set()


async def test_an_actor_of_a_pool_is_restarted_by_itself() -> None:
    notices = Notices()
    async with open_supervisor(emit=notices) as sup:
        counters = await sup.start_child(pool(Counter, 5, size=2, name="p"))
        notices.take()
        with pytest.raises(AskFailed):
            await counters.ask(Boom())
        assert await counters.ask(Total()) == 5
        await wait_all_tasks_blocked()
        assert len(notices.take()) == 3
        assert counters.incarnation == 1


async def test_what_is_queued_outlasts_a_pool_that_gave_up() -> None:
    async with open_supervisor() as sup:
        counters = await sup.start_child(pool(Counter, 5, size=1, intensity=Intensity(0, 1)))
        await counters.tell(Boom())
        assert await counters.ask(Total()) == 5
        assert counters.incarnation == 2


async def test_a_message_whose_taker_leaves_goes_to_another() -> None:
    """The one that was woken for it is cancelled before it takes it."""
    for _ in range(10):
        async with open_supervisor() as sup:
            counters = await sup.start_child(pool(Counter, size=2))
            await wait_all_tasks_blocked()
            first, second = reversed(counters.value.which_children())
            counters.tell_nowait(Add())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.stop_now)
                nursery.start_soon(wait_all_tasks_blocked)
            with trio.fail_after(5):
                assert await counters.ask(Total()) in (0, 1)
            assert counters.statistics().queued == 0
            assert second.status == "running"


async def test_a_stopped_pool_works_off_its_queue(autojump_clock: MockClock) -> None:
    notices = Notices()
    seen: list[int] = []

    class Slow(Counter):
        async def add(self, message: Add) -> None:
            await trio.sleep(1)
            seen.append(message.amount)

    async with open_supervisor(emit=notices) as sup:
        slow = await sup.start_child(pool(Slow, size=2, shutdown=2.5))
        for number in range(10):
            await slow.tell(Add(number))
        await wait_all_tasks_blocked()
    assert trio.current_time() == 2.5
    assert sorted(seen) == [0, 1, 2, 3]
    assert [notice.count for notice in notices.all if isinstance(notice, MessagesLost)] == [4]


def test_bad_pools_are_refused() -> None:
    with pytest.raises(TypeError, match="made of an Actor subclass"):
        pool(trio.sleep, size=1)  # type: ignore[call-overload]
    for size in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="size must be"):
            pool(Counter, size=size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="route must be"):
        pool(Counter, size=1, route="nearest")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="given to pool"):
        ChildSpec(pool(Counter, size=1), 3)


async def test_a_start_that_was_given_up_leaves_its_id_free(autojump_clock: trio.testing.MockClock) -> None:
    """C8: a running child or none, also for whoever asks right afterwards."""

    async def lingers(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)

    async with DynamicSupervisor() as sup:
        with trio.move_on_after(1):
            await sup.start_child(ChildSpec(lingers, id="x"))
        ref = await sup.start_child(ChildSpec(trio.sleep_forever, id="x"))
        assert (ref.status, trio.current_time() >= 5) == ("running", True)
        assert sup.count_children().specs == 1
