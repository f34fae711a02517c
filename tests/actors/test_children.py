"""Starting and managing children, one supervisor at a time."""

from __future__ import annotations

import contextvars
import functools
import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors import (
    Actor,
    ActorRef,
    ActorStopped,
    Backoff,
    ChildAlreadyPresent,
    ChildAlreadyStarted,
    ChildNotFound,
    ChildRestarting,
    ChildRunning,
    ChildSpec,
    ChildStartError,
    DuplicateChildId,
    ExitReason,
    Ignore,
    Intensity,
    Mailbox,
    Shutdown,
    SupervisorClosed,
    open_supervisor,
    run_supervisor,
    subtree,
)
from tests.actors.otp import statement
from tests.actors.support import Add, Boom, Counter, Leave, Notices, Total

if TYPE_CHECKING:
    from trio.testing import MockClock

    from omniactors import Supervisor


async def forever(*_args: object) -> None:
    await trio.sleep_forever()


async def refuses() -> None:
    raise OSError("no")


async def refuses_to_start(*, task_status: trio.TaskStatus[None]) -> None:
    raise OSError("no")


# -- specs ----------------------------------------------------------------------------------------


@statement(2, "sup_start_map")
def test_a_spec_has_the_defaults_of_otp() -> None:
    spec = ChildSpec(Counter)
    assert (spec.restart, spec.shutdown, spec.significant, spec.name) == ("permanent", 5.0, False, "Counter")
    assert ChildSpec(forever).restart == "transient"
    assert ChildSpec(subtree()).shutdown == math.inf


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"restart": "always"}, ValueError),
        ({"shutdown": -1}, ValueError),
        ({"shutdown": math.nan}, ValueError),
        ({"shutdown": "5"}, TypeError),
        ({"shutdown": True}, TypeError),
        ({"significant": 1}, TypeError),
        ({"significant": True}, ValueError),
        ({"backoff": 3}, TypeError),
        ({"id": []}, TypeError),
        ({"colour": "red"}, TypeError),
    ],
)
@statement(3, "sup_start_map_faulty_specs", "sup_flags")
@statement(4, "child_specs", "child_specs_map")
@statement(8, "child_specs_map")
@statement(11, "child_specs")
def test_bad_specs_are_refused_without_starting_anything(keywords: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        ChildSpec(Counter, **keywords)


@pytest.mark.parametrize("what", [Counter(), 3, "Counter", len, ChildSpec(Counter), print])
def test_what_is_no_child_is_refused(what: object) -> None:
    with pytest.raises(TypeError):
        ChildSpec(what)


def test_a_function_has_no_mailbox_and_a_tree_no_arguments() -> None:
    with pytest.raises(ValueError, match="an async function has no mailbox"):
        ChildSpec(forever, mailbox=Mailbox())
    with pytest.raises(ValueError, match="neither arguments nor a mailbox"):
        ChildSpec(subtree(), 1)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"strategy": "one_for_two"}, ValueError),
        ({"auto_shutdown": "sometimes"}, ValueError),
        ({"intensity": (3, 5)}, TypeError),
        ({"backoff": 1.0}, TypeError),
        ({"stop_deadline": -1}, ValueError),
    ],
)
@statement(6, "sup_flags")
async def test_bad_flags_are_refused(flags: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        async with open_supervisor(**flags):
            raise AssertionError
    with pytest.raises(error):
        subtree(**flags)


@statement(7, "child_specs")
@statement(
    9,
    "child_specs_map",
    "significant_upgrade_never_any",
    "significant_upgrade_any_never",
    "significant_upgrade_never_all",
    "significant_upgrade_all_never",
)
@statement(12, "order_of_children")
async def test_an_id_twice_is_refused_before_anything_starts() -> None:
    """Any hashable value is an id, and ids that count up make way for chosen ones."""
    notices = Notices()
    with pytest.raises(DuplicateChildId):
        async with open_supervisor(ChildSpec(Counter, id=7), ChildSpec(Counter, id=7), emit=notices):
            raise AssertionError
    with pytest.raises(ValueError, match="auto_shutdown"):
        async with open_supervisor(Counter, ChildSpec(forever, significant=True), emit=notices):
            raise AssertionError
    assert notices.all == []
    async with open_supervisor(Counter, ChildSpec(Counter, id=("b", 1)), ChildSpec(Counter, id="Counter-1")) as sup:
        assert [ref.id for ref in sup.which_children()] == ["Counter-1", ("b", 1), "Counter-2"]


# -- starting -------------------------------------------------------------------------------------


@statement(12, "order_of_children")
@statement(13, "order_of_children")
@statement(14)
@statement(83, "order_of_children")
async def test_children_start_one_after_the_other_and_stop_in_reverse(autojump_clock: MockClock) -> None:
    log: list[str] = []

    async def child(name: str, *, task_status: trio.TaskStatus[None]) -> None:
        log.append(f"init {name}")
        await trio.sleep(1)
        log.append(f"ack {name}")
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
                log.append(f"end {name}")

    async with open_supervisor(*[ChildSpec(child, name, id=name) for name in "bca"]):
        assert log == ["init b", "ack b", "init c", "ack c", "init a", "ack a"]
        log.clear()
    assert log == ["end a", "end c", "end b"]


@statement(15, "faulty_application_shutdown")
@statement(16)
@statement(17)
@statement(22, "sup_start_error_return", "sup_start_fail")
async def test_a_failing_start_stops_the_earlier_children_and_is_not_retried() -> None:
    notices = Notices()
    children = [ChildSpec(what, id=name) for name, what in {"a": forever, "b": forever, "c": refuses_to_start}.items()]
    with pytest.raises(ChildStartError) as caught:
        async with open_supervisor(*children, ChildSpec(forever, id="d"), emit=notices):
            raise AssertionError
    assert caught.value.child_id == "c"
    assert isinstance(caught.value.__cause__, OSError)
    assert notices.lines == ["started a 1", "started b 1", "failed c crash", "stopped b shutdown", "stopped a shutdown"]


async def test_ending_without_being_ready_is_a_failed_start() -> None:
    async def silent(*, task_status: trio.TaskStatus[None]) -> None: ...

    async with open_supervisor() as sup:
        with pytest.raises(ChildStartError, match=r"it ended \(normal\) without calling task_status.started"):
            await sup.start_child(silent)


@statement(18, "sup_start_ignore_child")
@statement(19, "sup_start_ignore_temporary_child", "sup_start_ignore_temporary_child_start_child")
@statement(39)
@statement(58, "simple_one_for_one_restart_ignore")
async def test_a_child_that_is_not_wanted_now() -> None:
    answers = iter([Ignore(), Ignore(), None, Ignore()])

    async def unsure(*, task_status: trio.TaskStatus[str]) -> None:
        if (answer := next(answers)) is not None:
            raise answer
        task_status.started("here")
        await gate.wait()
        raise ValueError

    gate = trio.Event()
    async with open_supervisor(ChildSpec(unsure, id="kept")) as sup:
        assert sup.child("kept").status == "stopped"
        assert sup.count_children() == (1, 0, 0, 1)
        await sup.restart_child("kept")
        assert sup.child("kept").status == "stopped"
        assert (await sup.restart_child("kept")).value == "here"
        gate.set()
        await wait_all_tasks_blocked()
        assert sup.child("kept").status == "stopped"
        answers = iter([Ignore()])
        ref = await sup.start_child(ChildSpec(unsure, restart="temporary"))
        assert ref.status == "stopped"
        assert sup.count_children().specs == 1


@statement(23, "extra_return", "simple_one_for_one_extra")
async def test_the_value_of_started_is_the_references_value() -> None:

    async def serve(*, task_status: trio.TaskStatus[int]) -> None:
        task_status.started(8080)
        await trio.sleep_forever()

    async with open_supervisor() as sup:
        assert (await sup.start_child(serve)).value == 8080


@statement(24)
async def test_a_child_that_ends_right_after_its_ack_is_seen() -> None:

    async def brief(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        raise ValueError

    notices = Notices()
    async with open_supervisor(emit=notices, intensity=Intensity(2, 5)) as sup:
        await sup.start_child(ChildSpec(brief, id="x", restart="temporary"))
        await wait_all_tasks_blocked()
        assert notices.lines == ["started x 1", "exited x crash"]


@statement(26, "tree")
@statement(83, "order_of_children")
async def test_trees_nest(autojump_clock: MockClock) -> None:
    notices = Notices()
    inner = subtree(ChildSpec(forever, id="leaf"), subtree(ChildSpec(forever, id="deep"), name="c"), name="b")
    async with open_supervisor(subtree(inner, name="a"), emit=notices) as sup:
        started = [line.split()[1] for line in notices.take()]
        assert started == ["a/b/leaf", "a/b/c/deep", "a/b/c", "a/b", "a"]
        assert sup.child("a").value.child("b").value.child("leaf").path == "supervisor/a/b/leaf"
        assert sup.count_children() == (1, 1, 1, 0)
    assert [line.split()[1] for line in notices.lines] == ["a/b/c/deep", "a/b/c", "a/b/leaf", "a/b", "a"]


async def test_partials_and_callable_objects_are_functions() -> None:
    class Callable:
        async def __call__(self, number: int) -> None:
            seen.append(number)

    seen: list[int] = []
    async with open_supervisor() as sup:
        await sup.start_child(functools.partial(forever, 1))
        await sup.start_child(Callable(), 2)
        await wait_all_tasks_blocked()
    assert seen == [2]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")


async def test_every_incarnation_sees_the_context_of_the_opening() -> None:
    """C9: also one that another task, with other variables, restarted."""
    seen: list[str] = []

    class Sees(Counter):
        async def on_start(self) -> None:
            seen.append(variable.get())

    variable.set("at opening")
    async with open_supervisor() as sup:
        variable.set("later")
        ref = await sup.start_child(Sees)
        await ref.tell(Boom())
        await wait_all_tasks_blocked()
        await sup.stop_child(ref.id)
        await sup.restart_child(ref.id)
    assert seen == ["at opening"] * 3


# -- managing -------------------------------------------------------------------------------------


@statement(28, "child_adm")
@statement(29, "child_adm", "hanging_restart_loop")
@statement(32, "child_specs")
@statement(40, "child_adm", "hanging_restart_loop")
async def test_ids_in_use_are_refused(autojump_clock: MockClock) -> None:
    async with open_supervisor(backoff=Backoff(initial=100)) as sup:
        ref: ActorRef[Any] = await sup.start_child(ChildSpec(Counter, id="x"))
        with pytest.raises(ChildAlreadyStarted) as caught:
            await sup.start_child(ChildSpec(forever, id="x"))
        assert caught.value.ref is ref
        with pytest.raises(ChildRunning):
            await sup.restart_child("x")
        with pytest.raises(ChildRunning):
            await sup.delete_child("x")
        ref.tell_nowait(Boom())
        await wait_all_tasks_blocked()
        with pytest.raises(ChildAlreadyPresent):
            await sup.start_child(ChildSpec(forever, id="x"))
        with pytest.raises(ChildRestarting):
            await sup.restart_child("x")
        with pytest.raises(ChildRestarting):
            await sup.delete_child("x")
        await sup.stop_child("x")
        with pytest.raises(ChildAlreadyPresent):
            await sup.start_child(ChildSpec(forever, id="x"))
        await sup.delete_child("x")
        for verb in (sup.stop_child, sup.restart_child, sup.delete_child):
            with pytest.raises(ChildNotFound):
                await verb("x")
        with pytest.raises(ChildNotFound):
            sup.child("x")
        with pytest.raises(ChildNotFound):
            sup.child([])  # type: ignore[arg-type]
        await sup.start_child(ChildSpec(forever, id="x"))


@statement(33, "child_adm")
@statement(34, "child_adm", "extra_return")
@statement(35, "significant_bystander")
@statement(37, "child_adm", "hanging_restart_loop")
@statement(42, "child_adm", "tree", "rest_for_one")
@statement(46, "sup_start_map", "sup_start_map_simple")
async def test_stop_restart_delete() -> None:
    """Nothing of it counts as a restart or touches siblings."""
    notices = Notices()
    async with open_supervisor(strategy="one_for_all", intensity=Intensity(0, 1), emit=notices) as sup:
        spec = ChildSpec(Counter, 3, id="x")
        ref: ActorRef[Any] = await sup.start_child(spec)
        other = await sup.start_child(Counter)
        assert sup.child_spec("x") is spec
        assert sup.which_children() == [other, ref]
        for _ in range(2):
            await sup.stop_child("x")
        assert (ref.status, (await ref.wait_stopped()).kind) == ("stopped", "shutdown")
        assert sup.count_children() == (2, 1, 0, 2)
        assert await sup.restart_child("x") is ref
        assert await ref.ask(Total()) == 3
        assert (ref.incarnation, other.incarnation) == (2, 1)


@statement(30, "sup_start_child_returns_error", "sup_start_child_returns_error_simple")
@statement(38, "sup_start_restart_child_returns_error")
async def test_a_failed_start_child_leaves_nothing_and_a_failed_restart_child_the_spec() -> None:
    fails = False

    async def sometimes(*, task_status: trio.TaskStatus[None]) -> None:
        if fails:
            raise OSError
        task_status.started()
        await trio.sleep_forever()

    async with open_supervisor(Counter, intensity=Intensity(0, 1)) as sup:
        with pytest.raises(ChildStartError):
            await sup.start_child(refuses_to_start)
        assert sup.count_children().specs == 1
        await sup.start_child(ChildSpec(sometimes, id="x"))
        await sup.stop_child("x")
        fails = True
        with pytest.raises(ChildStartError):
            await sup.restart_child("x")
        assert sup.child("x").status == "stopped"
        fails = False
        await sup.restart_child("x")


@statement(33, "child_adm")
@statement(49, "do_not_save_child_specs_for_temporary_children")
@statement(53, "temporary_normal", "temporary_shutdown", "temporary_abnormal")
async def test_a_temporary_child_is_forgotten_when_it_ends() -> None:
    async with open_supervisor() as sup:
        for ending in (Boom(), Leave(), None):
            ref = await sup.start_child(ChildSpec(Counter, id="x", restart="temporary"))
            await (sup.stop_child("x") if ending is None else ref.tell(ending))
            await ref.wait_stopped()
            assert sup.count_children().specs == 0


@statement(47, "child_adm")
@statement(94, "sup_start_normal", "sup_stop_manual", "sup_stop_manual_timeout")
async def test_a_closed_supervisor_says_so() -> None:
    async with open_supervisor(Counter) as sup:
        ref = sup.which_children()[0]
    with pytest.raises(SupervisorClosed):
        await sup.start_child(Counter)
    with pytest.raises(SupervisorClosed):
        await sup.restart_child(ref.id)
    await sup.stop_child(ref.id)


async def test_wait_children_waits_for_all_to_end_by_themselves(autojump_clock: MockClock) -> None:
    async with open_supervisor(ChildSpec(trio.sleep, 5), ChildSpec(trio.sleep, 7)) as sup:
        await sup.wait_children()
        assert trio.current_time() == 7
        await sup.wait_children()


async def test_an_embedded_supervisor_is_a_task_of_the_hosts_nursery() -> None:
    async with trio.open_nursery() as nursery:
        sup = await nursery.start(run_supervisor, subtree(Counter, name="mine"))
        assert repr(sup) == "<Supervisor mine one_for_one [1 running], limit 3 restarts in 5 s>"
        nursery.cancel_scope.cancel()
    assert sup.which_children()[0].status == "stopped"


@statement(48, "tree")
@statement(82)
async def test_a_restarted_tree_has_its_static_children_and_no_others() -> None:
    async with open_supervisor(subtree(ChildSpec(Counter, id="static"), name="tree", intensity=Intensity(0, 1))) as sup:
        tree = sup.child("tree")
        inner: Supervisor = tree.value
        extra = await inner.start_child(Counter)
        await tree.value.stop_child("static")
        await tree.value.delete_child("static")
        await extra.tell(Boom())
        await wait_all_tasks_blocked()
        assert tree.incarnation == 2
        assert [ref.id for ref in tree.value.which_children()] == ["static"]
        with pytest.raises(ActorStopped):
            await extra.ask(Total())


@statement(55, "one_for_one", "order_of_children")
@statement(56)
@statement(57, "simple_one_for_one", "simple_one_for_one_extra")
async def test_restarts_use_the_first_arguments() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Counter, 10)
        await ref.tell(Add(5))
        await ref.tell(Boom())
        assert await ref.ask(Total()) == 10
        assert ref.incarnation == 2


async def test_exit_reasons_of_functions(autojump_clock: MockClock) -> None:
    """C2: by what happened, not by who cancelled."""

    async def returns() -> None: ...

    async def leaves() -> None:
        raise Shutdown

    async def swallows() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return

    async def crashes_on_the_way_out() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError

    async def group() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crashes_on_the_way_out)
            nursery.start_soon(forever)

    async with open_supervisor() as sup:
        expected = {returns: "normal", leaves: "shutdown", refuses: "crash"}
        for function, kind in expected.items():
            ref = await sup.start_child(ChildSpec(function, restart="temporary"))
            assert (await ref.wait_stopped()).kind == kind
        stopped = {forever: "shutdown", swallows: "shutdown", crashes_on_the_way_out: "crash", group: "crash"}
        for function, kind in stopped.items():
            ref = await sup.start_child(ChildSpec(function, restart="temporary"))
            await wait_all_tasks_blocked()
            await ref.stop()
            reason = await ref.wait_stopped()
            assert reason.kind == kind
            assert reason.matches(KeyError) == (kind == "crash")
    assert str(ExitReason.NORMAL) == "normal"


async def test_an_actor_knows_its_supervisor_and_itself() -> None:
    class Knows(Actor[int]):
        async def on_start(self) -> None:
            assert self.supervisor is sup
            assert self.ref.id == "Knows-1"

    async with open_supervisor() as sup:
        await sup.start_child(Knows)


async def test_a_temporary_function_gets_its_arguments() -> None:
    got: list[object] = []

    async def note(*values: object) -> None:
        await trio.lowlevel.checkpoint()
        got.extend(values)

    async with open_supervisor() as sup:
        await sup.start_child(ChildSpec(note, 1, "two", restart="temporary"))
        await sup.wait_children()
    assert got == [1, "two"]
