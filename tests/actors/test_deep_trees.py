"""A thousand supervisors inside one another: nothing goes by recursion."""

from __future__ import annotations

import json
import math
import traceback
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from omniactors import ChildSpec, ChildStartError, DynamicSupervisor, Supervisor, TreeReport, open_supervisor, subtree
from omniactors.actors.incarnation import Incarnation
from omniactors.tracebacks import user_traceback
from tests.actors.support import Boom, Counter, Total

if TYPE_CHECKING:
    from omniactors import ActorRef
    from omniactors.actors.notices import Notice
    from omniactors.actors.trees import Subtree

LEVELS = 1000
DEEP = 400
"""Levels that no recursion survives, where a thousand would only take longer."""


def nested(inmost: object, levels: int = LEVELS) -> Subtree:
    tree = subtree(inmost, name="t")
    for _ in range(levels - 1):
        tree = subtree(tree, name="t")
    return tree


def inmost_of(sup: Supervisor) -> Supervisor:
    while isinstance(value := sup.which_children()[0].value, Supervisor):
        sup = value
    return sup


async def test_a_thousand_levels_start_print_and_stop() -> None:
    notices: list[Notice] = []
    with trio.fail_after(60):
        async with open_supervisor(nested(Counter), emit=notices.append) as sup:
            tree = sup.tree()
            assert len(list(tree)) == LEVELS + 2
            assert str(tree).count("\n") == LEVELS + 1
            assert repr(tree) == f"<ChildInfo supervisor: supervisor, running, {LEVELS + 1} below it>"
            assert tree == sup.tree() or tree != 1
            assert len({tree, tree}) == 1
            assert tree["supervisor" + "/t" * LEVELS].kind == "supervisor"
            as_dict = tree.as_dict()
            for _ in range(LEVELS + 1):
                as_dict = as_dict["children"][0]
            assert as_dict["kind"] == "actor"
            sup.report()
            inner = inmost_of(sup)
            assert inner.path == "supervisor" + "/t" * LEVELS
            counter: ActorRef[Boom | Total] = inner.child("Counter-1")  # type: ignore[assignment]
            await counter.tell(Boom())
            assert await counter.ask(Total()) == 0
    assert sum(isinstance(notice, TreeReport) for notice in notices) == 1
    assert len(notices) > 2 * LEVELS


async def broken(*, task_status: object) -> None:
    raise OSError("no such device")


async def test_a_start_that_fails_a_thousand_levels_down_can_be_printed() -> None:
    with trio.fail_after(60), pytest.raises(ChildStartError) as caught:
        async with open_supervisor(nested(broken)):
            pytest.fail("it started")
    error: BaseException | None = caught.value
    assert "t" in str(error)
    assert "no such device" in "".join(traceback.format_exception(caught.value))
    assert "no such device" in user_traceback(caught.value)
    depth = 0
    while error is not None and error.__cause__ is not None:
        error, depth = error.__cause__, depth + 1
    assert (type(error), depth) == (OSError, LEVELS + 1)


@pytest.mark.parametrize("way", ["stop_now", "stop_deadline", "ref", "cancel", "stop"])
async def test_deep_trees_end_at_once_without_recursion(way: str) -> None:
    stop_deadline = 0.1 if way == "stop_deadline" else math.inf
    with trio.fail_after(60):
        with trio.CancelScope() as scope:
            hanging = ChildSpec(Hanging, shutdown=math.inf)
            async with open_supervisor(nested(hanging, DEEP), stop_deadline=stop_deadline) as sup:
                if way == "stop_now":
                    sup.stop_now()
                elif way == "ref":
                    await sup.child("t").stop_now()
                elif way == "stop":
                    await sup.stop(deadline=0.1)
                elif way == "cancel":
                    sup.child("t").value.stop_now()
                    scope.cancel()
        assert sup.count_children().active == 0


class Hanging(Counter):
    async def on_stop(self, _reason: object) -> None:
        await trio.sleep_forever()


async def test_a_tree_goes_to_json() -> None:
    async with open_supervisor(Counter, subtree(Counter, name="t"), DynamicSupervisor(name="d")) as sup:
        await sup.child("Counter-1").ask(Total())  # type: ignore[attr-defined]
        tree = sup.tree()
        by_json = json.loads(json.dumps(tree.as_dict()))
        by_msgspec = msgspec.json.decode(msgspec.json.encode(tree))
        assert by_json == by_msgspec == tree.as_dict()
        assert [child["path"] for child in by_json["children"]] == [child.path for child in tree.children]
        assert by_json["children"][0]["mailbox"]["taken"] == 1


async def test_the_error_of_a_start_deep_below_names_the_reason() -> None:
    async def no_database() -> None:
        raise OSError("no database")

    async def unready(*, task_status: trio.TaskStatus[None]) -> None:
        await no_database()
        task_status.started()

    with pytest.raises(ChildStartError, match="'t' did not start, since 'unready' below it did not: OSError") as err:
        async with open_supervisor(nested(ChildSpec(unready, id="unready"), 50)):
            pass
    assert len(str(err.value)) < 200


async def test_whoever_is_killed_from_each_level_above_it_asks_those_below_once() -> None:
    run = Incarnation()
    asked: list[str] = []
    run.on_kill = lambda: asked.append("once")
    for _level in range(3):
        run.kill()
    assert asked == ["once"]
    assert run.scope.cancel_called
