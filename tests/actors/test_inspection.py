"""Inspection: the live tree as a value, as text, and as a notice."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors import Actor, ActorRef, ChildSpec, Mailbox, Request, on, open_supervisor, pool, subtree


class Wait(Request[None]):
    pass


class Relay(Request[None]):
    def __init__(self, target: ActorRef[Any]) -> None:
        self.target = target


class Boom:
    pass


class Node(Actor[Wait | Relay | Boom]):
    @on
    async def wait(self, _message: Wait) -> None:
        await trio.sleep_forever()

    @on
    async def relay(self, message: Relay) -> None:
        await message.target.ask(Wait())

    @on
    async def boom(self, _message: Boom) -> None:
        raise ValueError("boom")


async def test_a_tree_tells_who_handles_what_and_waits_for_whom(autojump_clock: trio.testing.MockClock) -> None:
    async with open_supervisor(
        ChildSpec(Node, id="asker"), ChildSpec(Node, id="asked", mailbox=Mailbox(7), shutdown=0), name="app"
    ) as sup:
        asker: Any = sup.child("asker")
        asked: Any = sup.child("asked")
        await asker.tell(Relay(asked))
        await wait_all_tasks_blocked()
        await asked.tell(Boom())
        await trio.sleep(3)
        tree = sup.tree()
        first, second = tree["app/asker"], tree["app/asked"]
        assert (first.handling, first.waits_for) == ("Relay", "app/asked")
        assert first.waiting == pytest.approx(3)
        assert (second.handling, second.waits_for) == ("Wait", None)
        assert second.mailbox is not None
        assert (second.mailbox.queued, second.mailbox.capacity) == (1, 7)
        assert any(line.endswith(" wait") and "test_inspection.py" in line for line in second.stack)
        assert asked.inspect() == second


async def test_exits_are_remembered_and_counted(autojump_clock: trio.testing.MockClock) -> None:
    async with open_supervisor(ChildSpec(Node, id="node"), name="app") as sup:
        node: Any = sup.child("node")
        for _ in range(2):
            await node.tell(Boom())
            await trio.sleep(10)
        info = node.inspect()
        assert (info.incarnation, info.failed, info.status) == (3, 2, "running")
        assert [(past.incarnation, past.ago, past.reason) for past in info.history] == [
            (1, pytest.approx(20), "crash: ValueError('boom')"),
            (2, pytest.approx(10), "crash: ValueError('boom')"),
        ]
        await node.stop()
        assert (node.inspect().status, node.inspect().stack) == ("stopped", ())


async def test_every_kind_of_child_is_told() -> None:
    notices: list[Any] = []
    async with open_supervisor(
        subtree(ChildSpec(Node, id="inner"), name="sub", strategy="rest_for_one"),
        pool(Node, size=2, name="pool"),
        ChildSpec(trio.sleep_forever, id="fn"),
        name="app",
        emit=notices.append,
    ) as sup:
        await wait_all_tasks_blocked()
        tree = sup.tree()
        assert [(info.path, info.kind) for info in tree] == [
            ("app", "supervisor"),
            ("app/sub", "supervisor"),
            ("app/sub/inner", "actor"),
            ("app/pool", "pool"),
            ("app/pool/1", "actor"),
            ("app/pool/2", "actor"),
            ("app/fn", "function"),
        ]
        assert str(tree).splitlines() == [
            "app  supervisor one_for_one, running, 0 of 3 restarts in 5 s",
            "|- sub  supervisor rest_for_one, running, 0 of 3 restarts in 5 s",
            "|  '- inner  actor, running, mailbox 0/128, 0 taken",
            "|- pool  pool one_for_one, running, 0 of 3 restarts in 5 s, mailbox 0/128, 0 taken",
            "|  |- 1  actor, running, mailbox 0/128, 0 taken",
            "|  '- 2  actor, running, mailbox 0/128, 0 taken",
            "'- fn  function, running",
        ]
        assert json.loads(json.dumps(tree.as_dict()))["children"][0]["children"][0]["path"] == "app/sub/inner"
        with pytest.raises(KeyError):
            tree["app/nobody"]
        sup.report()
        report = notices[-1]
        assert (report.path, [info.path for info in report.tree]) == ("app", [info.path for info in tree])


async def test_a_child_that_will_not_end_is_named_with_the_place_where_it_hangs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Stubborn(Node):
        @on
        async def wait(self, _message: Wait) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(12)

    notices: list[Any] = []
    async with open_supervisor(ChildSpec(Stubborn, id="stubborn", shutdown=0), name="app", emit=notices.append) as sup:
        ref: Any = sup.child("stubborn")
        await ref.tell(Wait())
        await wait_all_tasks_blocked()
    stuck = [notice for notice in notices if type(notice).__name__ == "ChildStuck"]
    assert [(notice.path, notice.seconds) for notice in stuck] == [("app/stubborn", 5), ("app/stubborn", 10)]
    assert any(line.endswith(" wait") for line in stuck[0].stack)
