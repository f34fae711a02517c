"""Statements on supervisors that no other test file proves, and whole behaviours behind single rules."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors import (
    Actor,
    Backoff,
    ChildExited,
    ChildNotFound,
    ChildRunning,
    ChildSpec,
    ChildStarted,
    DynamicSupervisor,
    GaveUp,
    Ignore,
    Intensity,
    Shutdown,
    on,
    open_supervisor,
    run_supervisor,
    subtree,
)
from tests.actors.otp import statement
from tests.actors.support import Add, Boom, Counter, Leave, Notices, Total

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from omniactors import ChildRef, Supervisor
    from omniactors.actors.rules import RestartType

OFTEN = Intensity(10**6, 5.0)


async def forever(*_args: object) -> None:
    await trio.sleep_forever()


class Leaver(Counter):
    """Ends as it is told: an Add crashes it orderly."""

    @on
    async def add(self, message: Add) -> None:
        """End with Shutdown."""
        raise Shutdown


ENDINGS: dict[str, Callable[[], Any]] = {"normal": Leave, "shutdown": Add, "crash": Boom}


# -- specs and starting ---------------------------------------------------------------------------


@statement(1)
async def test_the_flags_of_a_supervisor_have_defaults() -> None:
    async with open_supervisor() as sup:
        flags = sup.flags
    assert (flags.strategy, flags.auto_shutdown, flags.backoff) == ("one_for_one", "never", None)
    assert flags.intensity == Intensity(3, 5.0)
    assert Intensity(1, 5).restarts == 1


@statement(21, "sup_start_ignore_init")
@pytest.mark.parametrize("is_wanted", [True, False])
async def test_a_tree_may_say_that_it_is_not_wanted(is_wanted: bool) -> None:
    """No supervisor, no error, and the spec stays."""

    async def reports(*, task_status: trio.TaskStatus[Supervisor]) -> None:
        if not is_wanted:
            raise Ignore
        await run_supervisor(subtree(Counter, name="reports"), task_status=task_status)

    notices = Notices()
    async with open_supervisor(ChildSpec(reports, id="reports"), Counter, emit=notices) as sup:
        assert sup.child("reports").status == ("running" if is_wanted else "stopped")
        assert sup.count_children() == (2, 1 + is_wanted, 0, 2)
        assert ("started reports 1" in notices.lines) == is_wanted
        if is_wanted:
            assert await sup.child("reports").value.child("Counter-1").ask(Total()) == 0


@statement(25, "external_start_no_progress_log")
async def test_each_start_of_a_child_is_told_and_no_other_task() -> None:
    told: list[object] = []
    async with trio.open_nursery() as nursery, open_supervisor(Counter, emit=told.append) as sup:
        nursery.start_soon(forever)
        await sup.start_child(forever)
        assert told == [ChildStarted("supervisor/Counter-1", 1), ChildStarted("supervisor/forever-1", 1)]
        nursery.cancel_scope.cancel()


async def test_a_child_that_is_yet_to_start_can_be_stopped(autojump_clock: MockClock) -> None:
    """OTP hears of it when the start is over, too."""

    async def stops(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await supervisors[0].stop_child("late")
        stopped_at.append(trio.current_time())
        await trio.sleep_forever()

    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(5)
        task_status.started()
        await trio.sleep_forever()

    class Names(Actor[int]):
        async def on_start(self) -> None:
            supervisors.append(self.supervisor)

    supervisors: list[Supervisor] = []
    stopped_at: list[float] = []
    async with open_supervisor(Names, stops, ChildSpec(slow, id="slow"), ChildSpec(Counter, id="late")) as sup:
        await wait_all_tasks_blocked()
        assert (sup.child("late").status, sup.child("late").incarnation, stopped_at) == ("stopped", 1, [5])


# -- managing -------------------------------------------------------------------------------------


@statement(36, "child_adm", "child_adm_simple")
async def test_a_reference_stops_its_own_child_wherever_that_is() -> None:
    async with open_supervisor() as one, DynamicSupervisor() as other:
        first, second = await one.start_child(ChildSpec(Counter, id="x")), await other.start_child(Counter)
        await second.stop()
        assert (first.status, second.status) == ("running", "stopped")
        await second.stop()
        await first.stop()
        assert [ref.id for ref in one.which_children()] == ["x"]


@statement(41, "child_adm_simple")
async def test_a_dynamic_child_is_there_or_not_found() -> None:
    async with DynamicSupervisor() as sup:
        ref = await sup.start_child(Counter)
        for verb in (sup.restart_child, sup.delete_child):
            with pytest.raises(ChildRunning):
                await verb(ref.id)
        await sup.stop_child(ref.id)
        for verb in (sup.stop_child, sup.restart_child, sup.delete_child):
            with pytest.raises(ChildNotFound):
                await verb(ref.id)


@statement(43, "which_children", "which_children_simple_one_for_one")
@pytest.mark.parametrize("make", [open_supervisor, DynamicSupervisor])
async def test_one_child_is_found_by_its_id(make: Callable[[], Any]) -> None:
    async with make() as sup:
        ref = await sup.start_child(ChildSpec(Counter, id=7))
        assert sup.child(7) is ref
        assert sup.which_children() == [ref]
        with pytest.raises(ChildNotFound):
            sup.child(8)


@statement(44, "count_children", "count_children_supervisor")
async def test_children_are_counted_dead_or_alive() -> None:
    async with open_supervisor(Counter, subtree(Counter, name="tree")) as sup:
        assert sup.count_children() == (2, 2, 1, 1)
        await sup.stop_child("tree")
        await sup.start_child(ChildSpec(Counter, id="x"))
        assert sup.count_children() == (3, 2, 1, 2)
        await sup.stop_child("x")
        await sup.stop_child("Counter-1")
        assert sup.count_children() == (3, 0, 1, 2)
        await sup.delete_child("tree")
        assert sup.count_children() == (2, 0, 0, 2)


@statement(44, "hanging_restart_loop")
@statement(45, "count_restarting_children")
@statement(76, "hanging_restart_loop", "hanging_restart_loop_simple")
@pytest.mark.parametrize("make", [open_supervisor, DynamicSupervisor])
async def test_a_restarting_child_counts_but_is_not_active(make: Callable[..., Any], autojump_clock: MockClock) -> None:
    async with make(backoff=Backoff(initial=5, jitter=0)) as sup:
        for _ in range(2):
            await sup.start_child(Counter)
        ref = await sup.start_child(ChildSpec(Counter, id="x"))
        await ref.tell(Boom())
        await wait_all_tasks_blocked()
        assert sup.count_children() == (3, 2, 0, 3)
        await trio.sleep(6)
        assert sup.count_children() == (3, 3, 0, 3)
        await ref.tell(Boom())
        await wait_all_tasks_blocked()
        await sup.stop_child("x")
        assert ref.status == "stopped"


@statement(46, "sup_start_map_simple")
async def test_the_spec_of_a_dynamic_child_can_be_read_back() -> None:
    async with DynamicSupervisor() as sup:
        await sup.start_child(ChildSpec(Counter, 5, id="x", shutdown=3))
        spec = sup.child_spec("x")
        assert (spec.what, spec.args, spec.restart, spec.shutdown) == (Counter, (5,), "permanent", 3)
        with pytest.raises(ChildNotFound):
            sup.child_spec("y")


class Payload:
    """Something large."""


class Consumer(Actor[Add]):
    """Uses its argument at its start, and does not keep it."""

    def __init__(self, payload: Payload) -> None:
        assert isinstance(payload, Payload)

    @on
    async def add(self, message: Add) -> None:
        """Do nothing."""


async def consume(payload: Payload, *, task_status: trio.TaskStatus[None]) -> None:
    """Use the argument at the start, and drop it."""
    assert isinstance(payload, Payload)
    del payload
    task_status.started()
    await trio.sleep_forever()


@statement(50, "do_not_save_start_parameters_for_temporary_children", "simple_one_for_one_corruption")
@pytest.mark.parametrize("make", [open_supervisor, DynamicSupervisor])
@pytest.mark.parametrize("what", [Consumer, consume])
@pytest.mark.parametrize("restart", ["temporary", "transient", "permanent"])
async def test_the_arguments_of_temporary_children_are_not_kept(
    make: Callable[[], Any], what: Any, restart: RestartType
) -> None:
    payload = Payload()
    grave = weakref.ref(payload)
    async with make() as sup:
        ref: ChildRef = await sup.start_child(ChildSpec(what, payload, id="x", restart=restart))
        del payload
        gc.collect()
        assert (grave() is None) == (restart == "temporary")
        spec = sup.child_spec("x")
        assert (spec.what, spec.restart, len(spec.args)) == (what, restart, int(restart != "temporary"))
        assert ref.status == "running"
        await sup.stop_child("x")
        if restart == "temporary":
            with pytest.raises(RuntimeError, match="are not kept"):
                await sup.start_child(spec)


# -- ends -----------------------------------------------------------------------------------------


@statement(51, "permanent_normal", "permanent_shutdown", "permanent_abnormal")
@statement(52, "transient_normal", "transient_shutdown", "transient_abnormal")
@statement(53, "temporary_normal", "temporary_shutdown", "temporary_abnormal")
@statement(54)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
async def test_who_is_restarted_and_what_is_told(restart: RestartType, ending: str) -> None:
    told: list[object] = []
    async with open_supervisor(emit=told.append) as sup:
        ref = await sup.start_child(ChildSpec(Leaver, id="x", restart=restart))
        await ref.tell(ENDINGS[ending]())
        await wait_all_tasks_blocked()
        is_restarted = restart == "permanent" or (restart == "transient" and ending == "crash")
        assert (ref.status, ref.incarnation) == (("running", 2) if is_restarted else ("stopped", 1))
        assert sup.count_children().specs == (restart != "temporary")
        exits = [notice for notice in told if isinstance(notice, ChildExited)]
        assert [(notice.incarnation, notice.reason.kind) for notice in exits] == [(1, ending)]


@statement(56)
async def test_a_restart_does_not_see_what_the_child_did_to_itself() -> None:
    made: list[tuple[int, list[int]]] = []

    class Mutates(Counter):
        def __init__(self, start: int, seen: list[int]) -> None:
            super().__init__(start)
            made.append((start, list(seen)))

    async with open_supervisor() as sup:
        ref = await sup.start_child(Mutates, 3, [1, 2])
        await ref.tell(Add(4))
        await ref.tell(Boom())
        assert await ref.ask(Total()) == 3
    assert made == [(3, [1, 2])] * 2


@statement(58, "simple_one_for_one_restart_ignore")
async def test_a_dynamic_child_whose_restart_is_ignored_is_forgotten() -> None:
    answers = [None, Ignore()]

    async def unsure(*, task_status: trio.TaskStatus[None]) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer
        task_status.started()
        raise ValueError

    async with DynamicSupervisor() as sup:
        ref = await sup.start_child(unsure)
        await ref.wait_stopped()
        assert (ref.incarnation, sup.which_children()) == (2, [])


# -- restarts -------------------------------------------------------------------------------------


@statement(67, "hanging_restart_loop_rest_for_one", "rest_for_one_other_child_fails_restart")
@statement(77, "hanging_restart_loop")
@pytest.mark.parametrize("strategy", ["rest_for_one", "one_for_all"])
async def test_stopping_the_child_that_does_not_start_leaves_those_behind_it_down(
    strategy: Any, autojump_clock: MockClock
) -> None:
    """They waited for it, and nobody starts them now: they are stopped, and say so to whoever waits for them."""
    is_broken = False

    async def sometimes(*, task_status: trio.TaskStatus[None]) -> None:
        if is_broken:
            raise OSError
        task_status.started()
        await trio.sleep_forever()

    specs = [ChildSpec(Counter, id="a"), ChildSpec(sometimes, id="b"), ChildSpec(Counter, id="c")]
    async with open_supervisor(*specs, strategy=strategy, backoff=Backoff(initial=5, factor=1, jitter=0)) as sup:
        is_broken = True
        await sup.child("a").tell(Boom())  # type: ignore[attr-defined]  # it is an actor
        await trio.sleep(6)
        assert [(ref.id, ref.status) for ref in sup.which_children()] == [
            ("c", "restarting"),
            ("b", "restarting"),
            ("a", "running"),
        ]
        await sup.stop_child("b")
        assert sup.child("c").status == "stopped"
        await sup.child("c").wait_stopped()
        await sup.restart_child("c")
        is_broken = False
        await sup.child("a").tell(Boom())  # type: ignore[attr-defined]  # it is an actor
        await trio.sleep(6)
        assert {ref.status for ref in sup.which_children()} == {"running"}


@statement(72)
async def test_no_restart_allowed_is_no_restart() -> None:
    with pytest.raises(GaveUp) as caught:  # noqa: PT012 -- the block is what is tested
        async with open_supervisor(Counter, intensity=Intensity(0, 5)) as sup:
            sup.child("Counter-1").tell_nowait(Boom())  # type: ignore[attr-defined]  # it is an actor
            await trio.sleep_forever()
    assert caught.value.child_id == "Counter-1"


@statement(75, "simple_one_for_one_escalation")
@pytest.mark.parametrize("backoff", [None, Backoff(initial=60)])
async def test_a_dynamic_child_that_does_not_start_again_is_tried_as_often_as_allowed(
    backoff: Backoff | None, autojump_clock: MockClock
) -> None:
    starts = 0

    async def breaks(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            task_status.started()
        raise OSError

    with pytest.raises(GaveUp) as caught:  # noqa: PT012 -- the block is what is tested
        async with DynamicSupervisor(intensity=Intensity(4, 5), backoff=backoff) as sup:
            await sup.start_child(ChildSpec(breaks, id="x"))
            await trio.sleep_forever()
    assert (caught.value.child_id, starts) == ("x", 1 + 4)


@statement(82)
async def test_a_restarted_supervisor_has_an_empty_window() -> None:
    tree = subtree(ChildSpec(Counter, id="x"), intensity=Intensity(2, 1000), name="tree")
    async with open_supervisor(tree, intensity=OFTEN) as sup:
        for crash in range(1, 10):
            await sup.child("tree").value.child("x").tell(Boom())
            await wait_all_tasks_blocked()
            assert sup.child("tree").incarnation == 1 + crash // 3


@statement(95)
async def test_nothing_can_be_sent_to_a_supervisor() -> None:
    async with open_supervisor(subtree(Counter, name="tree")) as sup:
        for thing in (sup, sup.child("tree"), sup.child("tree").value):
            assert not hasattr(thing, "tell")
            assert not hasattr(thing, "ask")


# -- many children --------------------------------------------------------------------------------


async def test_scale_start_stop_many_children() -> None:
    """The time of a start and of a stop does not grow with the number of children."""
    async with open_supervisor(*[ChildSpec(forever, id=number) for number in range(5000)]) as sup:
        assert sup.count_children().active == 5000
        for number in range(0, 5000, 2):
            await sup.stop_child(number)
            await sup.delete_child(number)
        assert sup.count_children() == (2500, 2500, 0, 2500)


async def test_scale_mass_exit_children() -> None:
    """All end in the same moment, and all are seen."""
    gate = trio.Event()
    notices = Notices()
    async with open_supervisor(*[ChildSpec(gate.wait, id=number) for number in range(5000)], emit=notices) as sup:
        notices.take()
        gate.set()
        await sup.wait_children()
        assert sup.count_children() == (5000, 0, 0, 5000)
        assert len(notices.take()) == 5000


async def test_simple_one_for_one_scale_many_temporary_children() -> None:
    """Who has ended is forgotten, however many there were."""
    async with DynamicSupervisor() as sup:
        for _ in range(3000):
            await sup.start_child(ChildSpec(trio.lowlevel.checkpoint, restart="temporary"))
        await sup.wait_children()
        assert sup.which_children() == []
