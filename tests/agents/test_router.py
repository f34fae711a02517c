"""The router on a store that fails, answers late, hands entries to others, and has agents paused."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
import trio.lowlevel

from omniactors import Agent, BackendError, EventEnvelope, Mailbox, PayloadBase
from tests.agents.faulty import DOWN, UNKNOWN, Scene
from tests.agents.support import eventually, in_memory, running, until, watching

if TYPE_CHECKING:
    from collections.abc import Sequence


class Plain(Agent, topic="plain", name="plain"):
    seen: list[Any]

    async def handle(self, event: EventEnvelope[int]) -> int:
        type(self).seen.append(event.payload.content)
        return event.payload.content


class Ordered(Plain, topic="ordered", name="ordered", key=lambda event: event.payload.content % 3, concurrency=4):
    async def handle(self, event: EventEnvelope[int]) -> int:
        await trio.lowlevel.checkpoint()
        return await super().handle(event)


@pytest.fixture(autouse=True)
def nothing_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "omniactors.agents")
    Plain.seen = Ordered.seen = []


async def publish(scene: Scene, topic: str, contents: Sequence[object]) -> list[str]:
    return await scene.tasks.publish_batch([(topic, content) for content in contents])


def event(content: object, topic: str = "plain") -> EventEnvelope[Any]:
    return EventEnvelope(topic=topic, payload=PayloadBase(content=content))


# -- a store that fails -----------------------------------------------------------------------------


async def test_a_store_that_cannot_be_fetched_from_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "omniactors.agents")
    scene = Scene(Plain)
    scene.store.before["fetch"] = [DOWN, DOWN]
    async with watching(scene, "backend.*") as watcher, scene.running():
        ids = await publish(scene, "plain", range(10))
        assert await scene.tasks.wait_result(ids[-1]) == 9
        assert [seen.event_type for seen in watcher.seen] == ["backend.disconnected", "backend.recovered"]
    assert Plain.seen == list(range(10))
    assert "the store answers again, events are fetched" in caplog.messages


async def test_a_store_that_cannot_be_watched_is_fetched_from_all_the_same() -> None:
    scene = Scene(Plain)
    scene.store.before["wait"] = [DOWN] * 3
    async with scene.running():
        for number in range(5):
            assert await scene.tasks.wait_result(await scene.tasks.publish(event(number))) == number
    assert Plain.seen == list(range(5))


async def test_a_group_that_has_more_is_fetched_from_again_without_waiting() -> None:
    scene = Scene(Plain)

    def two(fetched: Any) -> Any:
        return msgspec.structs.replace(fetched, has_more=True)

    scene.store.answers["fetch"] = [two, two]
    async with scene.running():
        await until(lambda: bool(scene.store.calls["wait"]))
        assert len(scene.store.calls["fetch"]) == 3


async def test_only_drained_topics_are_waited_for_each_with_its_own_position() -> None:
    class Stuck(Agent, topic="stuck", name="stuck", mailbox=Mailbox(1)):
        async def handle(self, event: EventEnvelope[int]) -> None:
            await trio.sleep_forever()

    scene = Scene(Plain, Stuck)
    async with scene.running():
        await publish(scene, "stuck", range(3))
        await until(lambda: scene.runtime.running_tasks()["stuck"] == 1)
        await publish(scene, "stuck", [3])
        assert await scene.tasks.wait_result(await scene.tasks.publish(event(1))) == 1
        await until(lambda: scene.store.calls["wait"][-1][0].keys() >= {"plain"})
        assert "stuck" not in scene.store.calls["wait"][-1][0]
        waits = len(scene.store.calls["wait"])
        await publish(scene, "stuck", range(20))
        await trio.sleep(0.1)
        assert len(scene.store.calls["wait"]) == waits, "a change of a topic without room is no reason to wake"
        with trio.CancelScope(deadline=trio.current_time() + 0.05):
            await trio.sleep_forever()
        await scene.runtime.ref("stuck").stop_now()


# -- settlements ------------------------------------------------------------------------------------


async def test_a_settlement_whose_answer_was_lost_is_written_once_and_told_as_unconfirmed() -> None:
    scene = Scene(Plain)
    scene.store.after["settle_many"] = [UNKNOWN]
    async with watching(scene, "task.*") as watcher, scene.running():
        (task_id,) = await publish(scene, "plain", [7])
        assert await scene.tasks.wait_result(task_id) == 7
        (completed,) = await watcher.wait_for("task.completed")
        assert completed.data["unconfirmed"] is True
        assert watcher.of("task.late_completion") == []
    assert Plain.seen == [7]


async def test_a_settlement_that_the_store_refused_is_confirmed_by_the_next_try() -> None:
    scene = Scene(Plain)
    scene.store.before["settle_many"] = [DOWN]
    async with watching(scene, "task.*") as watcher, scene.running():
        await publish(scene, "plain", [7])
        (completed,) = await watcher.wait_for("task.completed")
        assert "unconfirmed" not in completed.data


async def test_a_settlement_that_came_too_late_is_told_so() -> None:
    scene = Scene(Plain)
    scene.store.answers["settle_many"] = [lambda committed: [False for _ in committed]]
    async with watching(scene, "task.*") as watcher, scene.running():
        await publish(scene, "plain", [7])
        await watcher.wait_for("task.late_completion")
        assert watcher.of("task.completed") == []


async def test_the_store_is_told_how_long_each_try_took() -> None:
    class Slow(Plain, topic="slow", name="slow"):
        async def handle(self, event: EventEnvelope[int]) -> int:
            await trio.sleep(0.05)
            raise ValueError("after a while")

    scene = Scene(Slow)
    async with scene.running():
        await publish(scene, "slow", [1])
        await until(lambda: bool(scene.store.calls["settle_many"]))
    ((settlement,),) = scene.store.calls["settle_many"][0]
    assert settlement.retry is not None
    assert 0.05 <= settlement.seconds < 5


async def test_work_goes_on_with_a_new_consumer_when_the_old_one_is_lost() -> None:
    class Slow(Plain, topic="slow", name="slow", concurrency=2):
        async def handle(self, event: EventEnvelope[int]) -> int:
            await trio.sleep(0.01)
            return await super().handle(event)

    scene = Scene(Slow, Ordered)
    async with scene.running():
        slow = await publish(scene, "slow", range(20))
        ordered = await publish(scene, "ordered", range(20))
        for losses in (1, 2):
            await until(lambda: scene.runtime.running_tasks()["slow"] == 2)
            scene.store.lose_lease.set()
            groups_made = scene.store.calls["create_groups"]
            await until(partial(_has_length, groups_made, 1 + losses))
        for number, task_id in enumerate(slow):
            assert await scene.tasks.wait_result(task_id) == number
        for number, task_id in enumerate(ordered):
            assert await scene.tasks.wait_result(task_id) == number
        await until(lambda: held(scene, "slow") == held(scene, "ordered") == 0)
        assert await scene.tasks.wait_result(await scene.tasks.publish(event(99, topic="slow"))) == 99
    assert set(Slow.seen) == {*range(20), 99}


# -- ordering keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [([], []), ([DOWN, DOWN], []), ([], [UNKNOWN]), ([DOWN], [UNKNOWN])])
async def test_ordered_events_are_claimed_and_keep_their_order_whatever_becomes_of_the_claims(
    before: list[BackendError], after: list[BackendError]
) -> None:
    scene = Scene(Ordered)
    scene.store.before["claim"] = list(before)
    scene.store.after["claim"] = list(after)
    async with scene.running():
        ids = await publish(scene, "ordered", range(60))
        for number, task_id in enumerate(ids):
            assert await scene.tasks.wait_result(task_id) == number
        await until(lambda: held(scene, "ordered") == 0)
    assert sorted(Ordered.seen) == list(range(60))
    for key in range(3):
        assert [number for number in Ordered.seen if number % 3 == key] == list(range(key, 60, 3))
    claimed = [(key.entry_id, text) for (keys,) in scene.store.calls["claim"] for key, text in keys]
    assert {text for _, text in claimed} == {"0", "1", "2"}
    assert all(want.is_ordered for (wants,) in scene.store.calls["fetch"] for want in wants if want.agent == "ordered")


async def test_what_was_handed_to_another_consumer_is_not_handled_and_takes_no_room() -> None:
    scene = Scene(Ordered)
    scene.store.answers["claim"] = [lambda ours: [index % 2 == 0 for index in range(len(ours))]]
    async with scene.running():
        await publish(scene, "ordered", range(6))
        await until(lambda: len(Ordered.seen) >= 3)
        await until(lambda: held(scene, "ordered") == 0)
        await trio.sleep(0.05)
    first = len(scene.store.calls["claim"][0][0])
    assert len(Ordered.seen) == 6 - first // 2


async def test_an_unreadable_event_among_ordered_ones_is_claimed_by_its_own_id_and_buried() -> None:
    scene = Scene(Ordered)
    async with watching(scene, "task.dead_lettered") as watcher, scene.running():
        ids = await publish(scene, "ordered", [1, "no number", None, 4])
        assert await scene.tasks.wait_result(ids[3]) == 4
        await watcher.wait_for("task.dead_lettered", 2)
        await until(lambda: held(scene, "ordered") == 0)
    claimed = [(key.entry_id, text) for (keys,) in scene.store.calls["claim"] for key, text in keys]
    assert sorted(text for _, text in claimed if not text.startswith("#")) == ["1", "1"]
    assert sum(text == f"#{entry_id}" for entry_id, text in claimed) == 2


async def test_agents_without_keys_claim_nothing() -> None:
    scene = Scene(Plain)
    async with scene.running():
        assert await scene.tasks.wait_result(await scene.tasks.publish(event(1))) == 1
    assert scene.store.calls["claim"] == []


def _has_length(calls: list[tuple[Any, ...]], length: int) -> bool:
    return len(calls) == length


def held(scene: Scene, agent: str) -> int:
    """How many events the agent's lane holds, as its representation tells."""
    return scene.runtime.held_events()[agent]


# -- pausing ----------------------------------------------------------------------------------------


class Gate(Agent, topic="gate", name="gate", mailbox=Mailbox(2)):
    started: list[int]
    opened: trio.Event

    async def handle(self, event: EventEnvelope[int]) -> int:
        type(self).started.append(event.payload.content)
        await type(self).opened.wait()
        return event.payload.content


async def test_a_paused_agent_finishes_what_it_is_at_and_takes_nothing_until_it_is_resumed() -> None:
    Gate.started, Gate.opened = [], trio.Event()
    async with running(Gate) as omni, watching(omni, "router.*") as watcher:
        ids = [await omni.publish("gate", number) for number in range(2)]
        await until(lambda: Gate.started == [0])
        await omni.agents.pause("gate")
        assert await omni.agents.paused() == ["gate"]
        Gate.opened.set()
        assert await omni.wait_result(ids[0]) == 0
        (paused,) = await watcher.wait_for("router.paused")
        assert paused.data == {"agent": "gate", "why": "paused"}
        later = [await omni.publish("gate", number) for number in (2, 3)]
        await trio.sleep(0.1)
        assert set(Gate.started) <= {0, 1}
        assert await omni.get_result(later[0]) is None
        await omni.agents.resume("gate")
        await watcher.wait_for("router.resumed")
        assert [await omni.wait_result(task_id) for task_id in (ids[1], *later)] == [1, 2, 3]
        assert Gate.started == [0, 1, 2, 3]


async def test_what_waits_in_memory_goes_back_when_an_agent_is_paused() -> None:
    class Wide(Gate, topic="wide", name="wide", mailbox=Mailbox(8), concurrency=4):
        started: list[int] = []  # noqa: RUF012 -- filled by this test
        opened = trio.Event()

    async with running(Wide) as omni:
        for number in range(5):
            await omni.publish("wide", number)
        await until(lambda: len(Wide.started) == 4)
        await until(lambda: omni.running_tasks()["wide"] == 4)
        await omni.agents.pause("wide")
        await omni.publish("wide", 5)

        async def holds(waiting: int, pending: int) -> bool:
            ((group,),) = [stream.groups for stream in await omni.streams.list()]
            return (group.waiting, group.pending) == (waiting, pending)

        await eventually(lambda: holds(2, 4))
        Wide.opened.set()
        await eventually(lambda: holds(2, 0))


async def test_an_agent_that_is_paused_when_it_starts_waits_to_be_resumed() -> None:
    Plain.seen = []
    omni = in_memory()
    omni.add(Plain)
    with trio.fail_after(10):
        async with omni:
            await omni.agents.pause("plain")
        async with omni, watching(omni, "router.*") as watcher:
            task_id = await omni.publish("plain", 1)
            await trio.sleep(0.05)
            assert Plain.seen == []
            await omni.agents.resume("plain")
            assert await omni.wait_result(task_id) == 1
            assert [seen.event_type for seen in watcher.seen][-1] == "router.resumed"
        await omni.shutdown()


# -- many agents ------------------------------------------------------------------------------------


async def test_an_idle_system_of_many_agents_asks_for_the_one_that_has_work() -> None:
    scene = Scene(Plain)
    for number in range(300):
        scene.runtime.add(Plain, (), {"name": f"a{number}", "topic": f"t{number}"})
    async with scene.running():
        await until(lambda: len(scene.store.calls["wait"][-1][0]) == 302 if scene.store.calls["wait"] else False)
        before = len(scene.store.calls["fetch"])
        for number in range(10):
            task = await scene.tasks.publish(event(number, topic="t7"))
            assert await scene.tasks.wait_result(task) == number
        wants = [want for (asked,) in scene.store.calls["fetch"][before:] for want in asked]
        assert {want.agent for want in wants} == {"a7"}
        assert len(wants) <= 30
