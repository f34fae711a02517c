"""Stopping: in order, under any cancellation, within its times, and what comes out of the block."""

from __future__ import annotations

import contextlib
import math
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors import (
    ActorRef,
    ActorStopped,
    Backoff,
    ChildSpec,
    ChildStartError,
    ChildStuck,
    Intensity,
    open_supervisor,
    run_supervisor,
    subtree,
)
from tests.actors.otp import statement
from tests.actors.support import Add, Boom, Counter, Hold, Notices, Total, cancel_everywhere

if TYPE_CHECKING:
    from trio.testing import MockClock

    from omniactors import Supervisor


async def stubborn(seconds: float) -> None:
    """Take `seconds` to end, whatever happens."""
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)


async def forever() -> None:
    await trio.sleep_forever()


THREE = [ChildSpec(forever, id=name) for name in "bca"]
STOPPED = [f"stopped {name} shutdown" for name in "acb"]


# -- order and time -------------------------------------------------------------------------------


@statement(83, "order_of_children")
async def test_an_outer_cancellation_stops_the_children_in_order() -> None:
    """C5."""
    notices = Notices()
    with trio.CancelScope() as scope:
        async with open_supervisor(*THREE, emit=notices):
            notices.take()
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert notices.lines == STOPPED


async def test_a_crash_in_the_hosts_nursery_stops_the_children_in_order() -> None:
    """C5."""
    notices = Notices()

    async def crashes() -> None:
        raise KeyError

    with pytest.RaisesGroup(KeyError):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_with(notices))
            notices.take()
            nursery.start_soon(crashes)
    assert notices.lines == STOPPED


def run_with(notices: Notices) -> Any:
    async def run(*, task_status: trio.TaskStatus[Any]) -> None:
        await run_supervisor(subtree(*THREE), emit=notices, task_status=task_status)

    return run


@statement(84, "sup_stop_timeout")
@statement(86, "sup_stop_infinity")
async def test_each_child_has_its_own_grace_time(autojump_clock: MockClock) -> None:
    """Told, waited for, killed; the others keep theirs."""
    notices = Notices()
    gate, entered = trio.Event(), trio.Event()
    async with open_supervisor(emit=notices) as sup:
        await sup.start_child(ChildSpec(stubborn, 7, id="patient", shutdown=math.inf))
        busy = await sup.start_child(ChildSpec(Counter, id="busy", shutdown=2))
        await sup.start_child(ChildSpec(stubborn, 1, id="quick", shutdown=2))

        await busy.tell(Hold(gate, entered))
        await entered.wait()
        notices.take()
    assert trio.current_time() == 1 + 2 + 7
    assert notices.lines == ["stopped quick shutdown", "stopped busy killed", "stopped patient shutdown"]


@statement(85, "sup_stop_brutal_kill", "sup_stop_brutal_kill_dynamic")
async def test_no_grace_is_a_cancellation_at_once(autojump_clock: MockClock) -> None:
    async with open_supervisor(ChildSpec(Counter, id="x", shutdown=0)) as sup:
        ref = sup.child("x")
    assert (await ref.wait_stopped()).kind == "killed"
    assert trio.current_time() == 0


@pytest.mark.parametrize("is_nested", [False, True])
@statement(86, "sup_stop_infinity")
async def test_the_stop_deadline_bounds_it_all(autojump_clock: MockClock, is_nested: bool) -> None:
    """C5."""
    children: list[Any] = [ChildSpec(Counter, id=number, shutdown=math.inf) for number in range(3)]
    gate = trio.Event()

    tree = [subtree(*children, name="tree")] if is_nested else children
    async with open_supervisor(*tree, stop_deadline=4) as sup:
        inner: Supervisor = sup.child("tree").value if is_nested else sup
        for ref in inner.which_children():
            assert isinstance(ref, ActorRef)
            await ref.tell(Hold(gate, trio.Event()))
        await wait_all_tasks_blocked()
    assert trio.current_time() == 4


async def test_the_stop_deadline_holds_for_a_stop_that_is_under_way(autojump_clock: MockClock) -> None:

    async with open_supervisor(stop_deadline=4) as sup, trio.open_nursery() as nursery:
        ref = await sup.start_child(ChildSpec(Counter, shutdown=math.inf))
        await ref.tell(Hold(trio.Event(), trio.Event()))
        await wait_all_tasks_blocked()
        nursery.start_soon(ref.stop)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 4


@statement(89, "child_unlink")
async def test_a_child_that_cannot_be_killed_is_waited_for_and_named(autojump_clock: MockClock) -> None:
    """C4."""
    notices = Notices()
    async with open_supervisor(ChildSpec(stubborn, 12, id="x", shutdown=1), emit=notices):
        await wait_all_tasks_blocked()
    stuck = [notice for notice in notices.all if isinstance(notice, ChildStuck)]
    assert [notice.seconds for notice in stuck] == [5, 10]
    assert any("stubborn" in line for line in stuck[0].stack)
    assert trio.current_time() == 12


@statement(88, "sup_stop_race", "sup_stop_non_shutdown_exit_dynamic")
@statement(92)
async def test_nothing_is_restarted_once_the_stop_has_begun(autojump_clock: MockClock) -> None:
    """Children that end by themselves meanwhile do not disturb it."""
    notices = Notices()

    async def crashes() -> None:
        await trio.sleep(1)
        raise ValueError

    async with open_supervisor(ChildSpec(crashes, id="x"), ChildSpec(stubborn, 3, id="y"), emit=notices):
        await wait_all_tasks_blocked()
        notices.take()
    assert notices.lines == ["exited x crash", "stopped y shutdown"]


@pytest.mark.parametrize("error", [None, ValueError()])
@statement(90)
async def test_an_end_in_the_tick_of_the_stop_keeps_its_true_reason(error: Exception | None) -> None:
    gate = trio.Event()

    async def child() -> None:
        await gate.wait()
        if error is not None:
            raise error

    async with open_supervisor() as sup:
        ref = await sup.start_child(child)
        await wait_all_tasks_blocked()
        gate.set()
        await ref.stop()
        reason = await ref.wait_stopped()
        assert reason.error is error
        assert reason.kind in ({"normal", "shutdown"} if error is None else {"crash"})


async def test_a_handler_that_swallows_its_cancellation_is_left_at_the_next_turn(autojump_clock: MockClock) -> None:
    """C3."""

    class Naughty(Counter):
        async def add(self, _message: object) -> None:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                swallowed.append(1)

    swallowed: list[int] = []
    async with open_supervisor() as sup:
        ref = await sup.start_child(Naughty)
        for _ in range(5):
            await ref.tell(Add())
    assert swallowed == [1]
    assert trio.current_time() == 5


# -- the body -------------------------------------------------------------------------------------


async def test_the_body_may_talk_to_its_children_on_its_way_out() -> None:
    """C5: the body leaves first; what it stops is stopped, what is down is not waited for."""
    with trio.CancelScope() as scope:
        async with open_supervisor(*[ChildSpec(Counter, id=name) for name in "abc"]) as sup:
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    a, b = sup.child("a"), sup.child("b")
                    assert isinstance(a, ActorRef)
                    assert isinstance(b, ActorRef)
                    assert await a.ask(Total()) == 0
                    await b.stop()
                    with pytest.raises(Exception, match="stopping or has ended"):
                        await sup.start_child(Counter)
                    a.tell_nowait(Boom())
                    with pytest.raises(ActorStopped):
                        await a.ask(Total())
    assert scope.cancelled_caught


@statement(92)
async def test_the_body_does_not_wait_for_a_restart_that_no_longer_comes(autojump_clock: MockClock) -> None:
    with trio.CancelScope() as scope:
        async with open_supervisor(Counter, backoff=Backoff(initial=50, jitter=0)) as sup:
            ref = sup.child("Counter-1")
            assert isinstance(ref, ActorRef)
            ref.tell_nowait(Boom())
            await wait_all_tasks_blocked()
            assert ref.status == "restarting"
            scope.cancel()
            with trio.fail_after(10, shield=True):
                await trio.sleep(1)
                with pytest.raises(ActorStopped):
                    await ref.ask(Total())
    assert trio.current_time() == 1


@pytest.mark.parametrize("error", [ValueError("x"), ExceptionGroup("mine", [ValueError("x")]), StopAsyncIteration()])
async def test_an_error_of_the_body_comes_out_as_it_is(error: Exception) -> None:
    """C6."""
    with pytest.raises(type(error)) as caught:
        async with open_supervisor(*THREE):
            raise error
    assert caught.value is error


async def test_an_error_of_the_body_is_not_lost_in_an_outer_cancellation(autojump_clock: MockClock) -> None:
    """C6: raised while it was cancelled, or before, when the stop outlasts the deadline."""
    with pytest.raises(ValueError, match="cleaning"), trio.move_on_after(1):  # noqa: PT012 -- the block is what is tested
        async with open_supervisor(*THREE):
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("cleaning")
    with pytest.raises(KeyError), trio.move_on_after(1):  # noqa: PT012 -- the block is what is tested
        async with open_supervisor(ChildSpec(stubborn, 3)):
            await wait_all_tasks_blocked()
            raise KeyError


# -- interrupts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("is_nested", [False, True])
async def test_an_interrupt_in_a_child_stops_all_and_comes_out_bare(
    error: type[BaseException], is_nested: bool
) -> None:
    """C16: never a crash to restart."""
    notices = Notices()

    async def interrupted() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    child = ChildSpec(interrupted, id="x", restart="permanent")
    for _ in range(10):  # the order in which trio runs tasks is random
        with pytest.raises(error) as caught:
            async with open_supervisor(*THREE, subtree(child, name="t") if is_nested else child, emit=notices):
                await trio.sleep_forever()
        assert not isinstance(caught.value, BaseExceptionGroup)
        assert [line for line in notices.take() if line.startswith("stopped")][-3:] == STOPPED
        assert "restarting" not in " ".join(notices.take())


async def test_an_interrupt_in_the_body_stops_all_and_comes_out_bare() -> None:
    notices = Notices()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 -- the block is what is tested
        async with open_supervisor(*THREE, emit=notices):
            notices.take()
            raise KeyboardInterrupt
    assert notices.lines == STOPPED


def test_ctrl_c_while_an_actor_works_ends_in_order() -> None:
    """C5, C16: wherever in the tree the signal strikes."""
    notices = Notices()

    class Busy(Counter):
        async def add(self, _message: object) -> None:
            signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with open_supervisor(*THREE, emit=notices) as sup:
            await (await sup.start_child(Busy)).tell(Add())
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, strict_exception_groups=True)
    assert notices.lines[-3:] == STOPPED


# -- the hazard -----------------------------------------------------------------------------------


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("sibling_crashes", [False, True])
async def test_giving_up_a_start_that_is_shielded(
    autojump_clock: MockClock, swallows: bool, sibling_crashes: bool
) -> None:
    """Trio's started() does nothing when the starter is cancelled: a child would stay in the wrong nursery for ever."""
    notices = Notices()
    is_first = True

    async def init(*, task_status: trio.TaskStatus[str]) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        if swallows:
            with contextlib.suppress(trio.Cancelled):
                await trio.lowlevel.checkpoint()
        task_status.started("ready")
        await trio.sleep_forever()

    async def sibling() -> None:
        nonlocal is_first
        if sibling_crashes and is_first:
            is_first = False
            await trio.sleep(0.5)
            raise ValueError
        await trio.sleep_forever()

    async with open_supervisor(ChildSpec(sibling, id="sibling"), emit=notices) as sup:
        with trio.move_on_after(1) as scope:
            await sup.start_child(ChildSpec(init, id="x"))
        assert scope.cancelled_caught
        assert trio.current_time() == 1
        await trio.sleep(5)
        assert [ref.id for ref in sup.which_children()] == ["sibling"]
        assert sup.child("sibling").incarnation == 1 + sibling_crashes
        assert (await sup.start_child(ChildSpec(init, id="x"))).value == "ready"


@pytest.mark.parametrize("swallows", [False, True])
async def test_giving_up_an_opening_that_is_shielded(autojump_clock: MockClock, swallows: bool) -> None:
    async def init(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        if swallows:
            with contextlib.suppress(trio.Cancelled):
                await trio.lowlevel.checkpoint()
        task_status.started()
        await trio.sleep_forever()

    with trio.move_on_after(1) as scope:
        async with open_supervisor(forever, init):
            raise AssertionError
    assert scope.cancelled_caught
    assert trio.current_time() == 2
    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_supervisor, subtree(subtree(forever, init)))
            raise AssertionError
    assert scope.cancelled_caught


# -- a cancel at every step -----------------------------------------------------------------------


@statement(91)
def test_cancelling_the_start_and_stop_of_a_tree_anywhere() -> None:
    """C5: no task is left, nothing hangs, what started last stops first."""
    notices = Notices()

    async def scenario() -> None:
        tree = subtree(ChildSpec(Counter, id="d"), ChildSpec(forever, id="e"), name="tree")
        async with open_supervisor(ChildSpec(Counter, id="a"), tree, ChildSpec(forever, id="c"), emit=notices) as sup:
            extra = await sup.start_child(ChildSpec(Counter, id="x"))
            await extra.ask(Total())
            await sup.stop_child("tree")

    def check() -> None:
        lines = notices.take()
        started = [line.split()[1] for line in lines if line.startswith("started")]
        ended = [line.split()[1] for line in lines if line.startswith("stopped")]
        assert sorted(started) == sorted(ended), lines
        outer = [name for name in ended if name in "acx" and name in started]
        assert outer == [name for name in reversed(started) if name in "acx"]

    assert cancel_everywhere(scenario, check) > 20


def test_cancelling_restarts_anywhere() -> None:
    """C5, C7."""
    notices = Notices()

    async def scenario() -> None:
        specs = [ChildSpec(Counter, id=name) for name in "abc"]
        async with open_supervisor(*specs, strategy="rest_for_one", emit=notices, intensity=Intensity(9, 9)) as sup:
            for name in "ba":
                ref = sup.child(name)
                assert isinstance(ref, ActorRef)
                await ref.tell(Boom())
                await ref.ask(Total())

    def check() -> None:
        lines = notices.take()
        assert sum(line.startswith("started") for line in lines) == sum(
            line.startswith(("stopped", "exited")) for line in lines
        )

    assert cancel_everywhere(scenario, check) > 30


def test_cancelling_a_start_child_anywhere_leaves_a_running_child_or_none() -> None:
    """C8: start_child is atomic."""

    async def init(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(1)
        task_status.started()
        await trio.sleep_forever()

    async def scenario() -> None:
        with trio.CancelScope(shield=True):
            async with open_supervisor() as sup:
                ref = None
                with trio.CancelScope(shield=False):
                    ref = await start_unshielded(sup, init)
                await wait_all_tasks_blocked()
                assert sup.count_children().specs == (ref is not None)

    assert cancel_everywhere(scenario) > 5


async def start_unshielded(sup: Any, init: Any) -> Any:
    return await sup.start_child(init)


def test_cancelling_asks_and_tells_anywhere() -> None:
    """C12: all or nothing for tell, and the actor goes on."""
    sums: list[tuple[int, int]] = []

    async def scenario() -> None:

        with trio.CancelScope(shield=True):
            async with open_supervisor() as sup:
                ref = await sup.start_child(Counter)
                sent = 0
                async with trio.open_nursery() as nursery:
                    nursery.cancel_scope.shield = False
                    for _ in range(3):
                        await ref.tell(Add())
                        sent += 1
                    await ref.ask(Total())
                sums.append((sent, await ref.ask(Total())))

    def check() -> None:
        assert all(sent == total for sent, total in sums)

    cancel_everywhere(scenario, check)


async def test_a_failed_start_below_comes_out_as_a_start_error() -> None:
    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        raise OSError

    with pytest.raises(ChildStartError) as caught:
        async with open_supervisor(subtree(ChildSpec(fails, id="leaf"), name="tree")):
            raise AssertionError
    assert caught.value.child_id == "tree"
    inner = caught.value.__cause__
    assert isinstance(inner, ChildStartError)
    assert inner.child_id == "leaf"
