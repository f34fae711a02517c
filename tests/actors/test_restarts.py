"""Strategies, restart intensity, backoff, and shutdown that significant children bring about."""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors import (
    ActorRef,
    Backoff,
    ChildSpec,
    GaveUp,
    Intensity,
    open_supervisor,
    subtree,
)
from tests.actors.otp import statement
from tests.actors.support import Add, Boom, Counter, Hold, Leave, Notices, Total

if TYPE_CHECKING:
    from trio.testing import MockClock

    from omniactors import Supervisor

MANY = Intensity(1000, 5)


class Flaky(Counter):
    """A counter whose next starts fail as often as `failures` says."""

    failures = 0

    async def on_start(self) -> None:
        if Flaky.failures:
            Flaky.failures -= 1
            raise OSError


@pytest.fixture(autouse=True)
def _no_failures() -> None:
    Flaky.failures = 0


def ref_of(sup: Supervisor, child_id: str) -> ActorRef[object]:
    """The reference of an actor."""
    ref = sup.child(child_id)
    assert isinstance(ref, ActorRef)
    return ref


async def crash(sup: Supervisor, child_id: str) -> None:
    """Let a child crash and the supervisor come to rest."""
    ref_of(sup, child_id).tell_nowait(Boom())
    await wait_all_tasks_blocked()


def counters(names: str) -> list[ChildSpec]:
    return [ChildSpec(Counter, id=name) for name in names]


# -- strategies -----------------------------------------------------------------------------------


@statement(59, "one_for_one")
@statement(65)
@statement(69, "sup_stop_race")
async def test_one_for_one_restarts_the_failed_child_alone() -> None:
    notices = Notices()
    async with open_supervisor(*counters("cab"), emit=notices) as sup:
        notices.take()
        await crash(sup, "a")
        assert notices.take() == ["exited a crash", "restarting a 1", "started a 2"]


@statement(60, "one_for_all")
@statement(65)
@statement(68, "temporary_bystander", "significant_bystander")
async def test_one_for_all_stops_all_in_reverse_and_starts_all_in_order() -> None:
    notices = Notices()
    async with open_supervisor(*counters("cab"), strategy="one_for_all", emit=notices) as sup:
        notices.take()
        await crash(sup, "a")
        assert notices.take() == [
            "exited a crash",
            "restarting a 1",
            "stopped b shutdown",
            "stopped c shutdown",
            "started c 2",
            "started a 2",
            "started b 2",
        ]


@statement(27, "rest_for_one")
@statement(61, "rest_for_one", "order_of_children")
async def test_rest_for_one_leaves_the_earlier_ones_alone() -> None:
    notices = Notices()
    async with open_supervisor(*counters("12345"), strategy="rest_for_one", emit=notices) as sup:
        await sup.start_child(ChildSpec(Counter, id="6"))
        notices.take()
        await crash(sup, "3")
        assert [line for line in notices.take() if not line.startswith("restarting")] == [
            "exited 3 crash",
            *[f"stopped {number} shutdown" for number in (6, 5, 4)],
            *[f"started {number} 2" for number in (3, 4, 5, 6)],
        ]


@statement(62, "temporary_bystander")
@statement(63)
async def test_a_group_restart_drops_temporary_siblings_and_starts_all_others() -> None:
    """Also those that had ended normally or were stopped by stop_child."""
    async with open_supervisor(strategy="one_for_all") as sup:
        await sup.start_child(ChildSpec(Counter, id="fails"))
        await sup.start_child(ChildSpec(Counter, id="temporary", restart="temporary"))
        await sup.start_child(ChildSpec(Counter, id="ended", restart="transient"))
        await sup.start_child(ChildSpec(Counter, id="stopped"))
        await ref_of(sup, "ended").tell(Leave())
        await sup.stop_child("stopped")
        await crash(sup, "fails")
        assert [(ref.id, ref.status, ref.incarnation) for ref in sup.which_children()] == [
            ("stopped", "running", 2),
            ("ended", "running", 2),
            ("fails", "running", 2),
        ]


async def test_what_is_queued_for_a_sibling_outlasts_the_groups_restart() -> None:
    """A sibling stops after its current message; senders notice nothing."""
    async with open_supervisor(*counters("ab"), strategy="one_for_all") as sup, trio.open_nursery() as nursery:
        gate, entered = trio.Event(), trio.Event()
        b = ref_of(sup, "b")
        await b.tell(Hold(gate, entered))
        await entered.wait()
        await b.tell(Add(1))
        totals: list[object] = []

        async def ask() -> None:
            totals.append(await b.ask(Total()))

        nursery.start_soon(ask)
        await crash(sup, "a")
        await b.tell(Add(1))
        gate.set()
        await wait_all_tasks_blocked()
        assert b.incarnation == 2
        assert totals == [1]
        assert await b.ask(Total()) == 2


@statement(64)
async def test_a_group_stop_keeps_each_childs_own_grace_time(autojump_clock: MockClock) -> None:

    async def slow(seconds: float) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

    async with open_supervisor(Counter, ChildSpec(slow, 3, id="slow"), strategy="one_for_all") as sup:
        await crash(sup, "Counter-1")
        await trio.sleep(4)
        assert sup.child("slow").incarnation == 2
        await sup.child("slow").stop_now()


@statement(69, "sup_stop_race")
async def test_a_sibling_that_dies_during_the_groups_stop_is_not_counted() -> None:

    async def dies() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError

    notices = Notices()
    children = [ChildSpec(Counter, id="a"), ChildSpec(dies, id="b")]
    async with open_supervisor(*children, strategy="one_for_all", intensity=Intensity(1, 5), emit=notices) as sup:
        notices.take()
        await crash(sup, "a")
        assert notices.lines == ["exited a crash", "restarting a 1", "stopped b crash", "started a 2", "started b 2"]


@statement(66, "one_for_all_other_child_fails_restart")
@statement(
    75, "one_for_one_escalation", "one_for_all_escalation", "rest_for_one_escalation", "simple_one_for_one_escalation"
)
async def test_one_for_all_begins_anew_when_one_does_not_start() -> None:
    notices = Notices()
    children = [ChildSpec(Counter, id="a"), ChildSpec(Flaky, id="b"), ChildSpec(Counter, id="c")]
    async with open_supervisor(*children, strategy="one_for_all", emit=notices) as sup:
        notices.take()
        Flaky.failures = 1
        await crash(sup, "a")
        assert notices.lines == [
            "exited a crash",
            "restarting a 1",
            "stopped c shutdown",
            "stopped b shutdown",
            "started a 2",
            "failed b crash",
            "restarting b 2",
            "stopped a shutdown",
            "started a 3",
            "started b 3",
            "started c 2",
        ]


@statement(67, "rest_for_one_other_child_fails_restart", "hanging_restart_loop_rest_for_one")
async def test_rest_for_one_goes_on_at_the_one_that_did_not_start() -> None:
    notices = Notices()
    children = [ChildSpec(Counter, id="a"), ChildSpec(Flaky, id="b"), ChildSpec(Counter, id="c")]
    async with open_supervisor(*children, strategy="rest_for_one", emit=notices) as sup:
        Flaky.failures = 2
        notices.take()
        await crash(sup, "a")
        assert [line for line in notices.lines if "restarting" not in line][3:] == [
            "started a 2",
            "failed b crash",
            "failed b crash",
            "started b 4",
            "started c 2",
        ]


async def test_stopping_one_of_a_group_while_it_starts_leaves_the_others_to_start() -> None:
    gate = trio.Event()
    is_slow = False

    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        if is_slow:
            await gate.wait()
        task_status.started()
        await trio.sleep_forever()

    async with open_supervisor(
        ChildSpec(Counter, id="a"), ChildSpec(slow, id="b"), ChildSpec(Counter, id="c"), strategy="one_for_all"
    ) as sup:
        is_slow = True
        await crash(sup, "a")
        assert sup.child("b").status == "starting"
        await sup.stop_child("b")
        assert [ref.status for ref in reversed(sup.which_children())] == ["running", "stopped", "running"]


async def test_a_stop_that_was_abandoned_while_the_child_restarted_is_carried_out(autojump_clock: MockClock) -> None:
    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(10)
        task_status.started()
        await trio.sleep(1)
        raise ValueError

    async with open_supervisor(backoff=Backoff(initial=5, jitter=0)) as sup:
        ref = await sup.start_child(ChildSpec(slow, id="slow"))
        await trio.sleep(8)
        assert ref.status == "starting"
        with trio.move_on_after(0.5) as scope:
            with trio.CancelScope() as inner:
                inner.cancel()
                await ref.stop()
            assert ref.status == "starting"  # cancelled before it was asked for: it did not happen
            await ref.stop()
        assert not scope.cancelled_caught
        assert ref.status == "stopped"


# -- intensity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [0, 1, 3])
@statement(70, "one_for_one")
@statement(71, "one_for_one")
@statement(72)
@statement(74, "one_for_one")
@statement(79)
async def test_one_restart_too_many_ends_the_supervisor(restarts: int) -> None:
    """The count is shared by all children."""
    notices = Notices()
    with pytest.raises(GaveUp) as caught:  # noqa: PT012 -- the block is what is tested
        async with open_supervisor(*counters("abc"), intensity=Intensity(restarts, 5), emit=notices) as sup:
            for number in range(restarts):
                await crash(sup, "abc"[number % 3])
            assert all(ref.status == "running" for ref in sup.which_children())
            notices.take()
            await crash(sup, "b")
            raise AssertionError
    assert caught.value.child_id == "b"
    assert isinstance(caught.value.__cause__, ValueError)
    assert notices.lines == ["exited b crash", "stopped c shutdown", "stopped a shutdown"]


@statement(73, "multiple_restarts")
async def test_the_window_slides(autojump_clock: MockClock) -> None:
    """One restart a second, with gaps of 2.1 s, for ever."""
    async with open_supervisor(Counter, intensity=Intensity(1, 1)) as sup:
        for _ in range(100):
            await crash(sup, "Counter-1")
            await trio.sleep(2.1)
        assert sup.child("Counter-1").incarnation == 101


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
@statement(
    75, "one_for_one_escalation", "one_for_all_escalation", "rest_for_one_escalation", "simple_one_for_one_escalation"
)
async def test_a_start_that_always_fails_is_tried_as_often_as_the_intensity_allows(strategy: str) -> None:
    notices = Notices()
    with pytest.raises(GaveUp) as caught:  # noqa: PT012 -- the block is what is tested
        async with open_supervisor(Flaky, strategy=strategy, intensity=Intensity(4, 5), emit=notices) as sup:  # type: ignore[arg-type]
            Flaky.failures = 1000
            await crash(sup, "Flaky-1")
    assert notices.lines.count("failed Flaky-1 crash") == 4
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(("inner", "outer"), [(0, 0), (1, 2), (3, 1)])
@statement(80)
@statement(81)
async def test_nested_limits_multiply(inner: int, outer: int) -> None:
    """A permanent tree that gave up is restarted by its parent."""
    notices = Notices()

    async def crashes(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        raise ValueError

    tree = subtree(ChildSpec(crashes, id="x"), intensity=Intensity(inner, 5), name="tree")
    with pytest.raises(GaveUp):
        async with open_supervisor(tree, intensity=Intensity(outer, 5), emit=notices):
            await trio.sleep_forever()
    assert sum(line.startswith("started tree/x") for line in notices.lines) == (inner + 1) * (outer + 1)


@statement(80)
async def test_a_transient_tree_that_gave_up_stays_down() -> None:
    """As in OTP, giving up is "shutdown" towards the parent."""
    tree = ChildSpec(subtree(Counter, intensity=Intensity(0, 5), name="tree"), restart="transient")
    async with open_supervisor(tree) as sup:
        await crash(sup.child("tree").value, "Counter-1")
        reason = await sup.child("tree").wait_stopped()
        assert reason.kind == "shutdown"
        assert reason.matches(GaveUp)


async def test_what_the_block_does_when_it_is_given_up_on() -> None:
    """C6: GaveUp comes out bare, with the block's own trouble as a note."""
    with pytest.raises(GaveUp) as caught:  # noqa: PT012 -- the block is what is tested
        async with open_supervisor(Counter, intensity=Intensity(0, 5)) as sup:
            try:
                await crash(sup, "Counter-1")
            finally:
                raise KeyError("cleaning up")
    assert caught.value.__notes__ == ["beside it: KeyError('cleaning up')"]


# -- backoff --------------------------------------------------------------------------------------


@statement(76, "hanging_restart_loop", "hanging_restart_loop_rest_for_one", "hanging_restart_loop_simple")
@statement(77, "hanging_restart_loop")
@statement(78)
@statement(93, "hanging_restart_loop")
async def test_a_backoff_delays_and_can_be_stopped(autojump_clock: MockClock) -> None:
    async with open_supervisor(*counters("ab"), backoff=Backoff(initial=10, jitter=0)) as sup:
        await crash(sup, "a")
        assert sup.child("a").status == "restarting"
        assert await ref_of(sup, "b").ask(Total()) == 0
        await trio.sleep(9.9)
        assert sup.child("a").status == "restarting"
        await trio.sleep(0.2)
        assert sup.child("a").incarnation == 2
        await crash(sup, "a")
        await sup.stop_child("a")
        assert sup.child("a").status == "stopped"
        await trio.sleep(100)
        assert sup.child("a").incarnation == 2
        await crash(sup, "b")
        began = trio.current_time()
    assert trio.current_time() == began


@statement(78)
async def test_a_child_that_always_fails_is_given_up_on_in_spite_of_its_backoff(autojump_clock: MockClock) -> None:
    """The window counts time outside the backoff."""

    async def fails() -> None:
        raise ValueError

    with pytest.raises(GaveUp):
        async with open_supervisor(ChildSpec(fails), backoff=Backoff(initial=60, jitter=0)):
            await trio.sleep_forever()
    assert trio.current_time() == 60 + 60 + 60


# -- auto shutdown --------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", ["transient", "temporary"])
@statement(96, "significant_temporary", "significant_transient")
@statement(98, "significant_transient")
@statement(99, "significant_bystander", "nonsignificant_temporary", "nonsignificant_transient")
async def test_any_significant_child_ends_the_supervisor(restart: str) -> None:
    gate = trio.Event()
    specs = [ChildSpec(gate.wait, restart=restart, significant=True), Counter]  # type: ignore[arg-type]
    crashing = ChildSpec(Counter, id="t", restart="transient", significant=True)
    async with open_supervisor(*specs, crashing, auto_shutdown="any_significant") as sup:
        await crash(sup, "t")
        await sup.stop_child("t")
        await ref_of(sup, "Counter-1").tell(Leave())
        await wait_all_tasks_blocked()
        gate.set()
        await trio.sleep(math.inf)
    assert sup.child("Counter-1").status == "stopped"


@statement(97, "significant_temporary", "significant_transient")
async def test_all_significant_children_have_to_end(autojump_clock: MockClock) -> None:
    specs = [ChildSpec(trio.sleep, seconds, significant=True) for seconds in (1, 5, 3)]
    async with open_supervisor(*specs, Counter, auto_shutdown="all_significant"):
        await trio.sleep(math.inf)
    assert trio.current_time() == 5


@statement(100, "significant_escalation")
async def test_auto_shutdown_chains() -> None:
    gate = trio.Event()
    leaf = ChildSpec(gate.wait, significant=True)
    tree = ChildSpec(subtree(leaf, auto_shutdown="any_significant"), restart="transient", significant=True)
    async with open_supervisor(tree, auto_shutdown="any_significant"):
        gate.set()
        await trio.sleep_forever()


# -- endurance ------------------------------------------------------------------------------------


async def test_many_restarts_leave_nothing_behind() -> None:
    """C7; 100,000 behave as 5,000."""

    class Broken(Exception):
        """Of this test alone: others leave errors behind in the same process."""

    rounds = 5000

    async def crashes(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        if left:
            left.pop()
            raise Broken
        await trio.sleep_forever()

    left = [None] * rounds
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with open_supervisor(intensity=Intensity(10**9, 0.001)) as sup:
        ref = await sup.start_child(crashes)
        await wait_all_tasks_blocked()
        assert not left
        assert ref.incarnation == rounds + 1
        assert trio.lowlevel.current_statistics().tasks_living == tasks + 3
        gc.collect()
        errors = sum(isinstance(thing, Broken) for thing in gc.get_objects())
        assert errors < 10
    assert math.isinf(trio.current_effective_deadline())
