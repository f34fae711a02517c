"""What becomes of an event whose end the store does not take: for now, or ever."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from omniactors import Agent, BackendError, BackendRefused, EventEnvelope, PayloadBase, TaskFailed
from tests.agents.faulty import Scene
from tests.agents.support import until, watching

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from omniactors.streams.settlement import Settlement

NEVER = BackendRefused("the store does not take so much at once")
NOT_NOW = BackendError("the disk is full")


class Worker(Agent, topic="refusals", name="worker"):
    async def handle(self, event: EventEnvelope[str]) -> str:
        return event.payload.content


class Crowd(Worker, topic="crowd", name="crowd", concurrency=32):
    pass


class Neighbour(Worker, topic="elsewhere", name="neighbour"):
    pass


def of_worker(error: BackendError, rule: Callable[[Settlement], bool]) -> Callable[[Settlement], BackendError | None]:
    """Refuse what the worker's events end with, where the rule holds."""
    return lambda settlement: error if settlement.key.agent == "worker" and rule(settlement) else None


def is_success(settlement: Settlement) -> bool:
    return settlement.dead is None


def has_webhook(settlement: Settlement) -> bool:
    return settlement.dead is None or bool(settlement.publications)


async def outcome(scene: Scene, topic: str = "refusals", webhook: str | None = None) -> str:
    payload = PayloadBase(content="done", webhook=webhook)
    task = await scene.tasks.publish(EventEnvelope(topic=topic, payload=payload))
    try:
        return str(await scene.tasks.wait_result(task))
    except TaskFailed as failed:
        return failed.error


async def dead(scene: Scene) -> list[tuple[str, str]]:
    letters = await scene.store.real.dead_letters("refusals", limit=10)
    return [(letter.reason, letter.error_type) for letter in letters]


async def test_what_the_store_never_takes_is_a_dead_letter_and_the_waiter_is_told() -> None:
    scene = Scene(Worker, Neighbour)
    scene.store.refuse = of_worker(NEVER, is_success)
    async with watching(scene, "task.*") as watcher, scene.running():
        assert "does not take so much" in await outcome(scene)
        assert await outcome(scene, "elsewhere") == "done"
        assert await dead(scene) == [("handler-error", "BackendRefused")]
        await until(lambda: "task.dead_lettered" in [seen.event_type for seen in watcher.seen])


async def test_a_dead_letter_that_is_too_large_goes_without_its_webhook() -> None:
    scene = Scene(Worker)
    scene.store.refuse = of_worker(NEVER, has_webhook)
    async with scene.running():
        assert "does not take so much" in await outcome(scene, webhook="http://127.0.0.1:1/hook")
        assert await dead(scene) == [("handler-error", "BackendRefused")]


async def test_what_cannot_even_be_a_dead_letter_stays_and_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(Worker, Neighbour)
    scene.store.refuse = of_worker(NEVER, lambda _: True)
    async with scene.running():
        await scene.tasks.publish_batch([("refusals", "lost?")] * 40)
        await until(lambda: sum("not even as a dead letter" in line for line in caplog.messages) == 40)
        assert await outcome(scene, "elsewhere") == "done"
        (info,) = [info for info in await scene.store.real.streams() if info.topic == "refusals"]
        assert info.length == 40
    assert all(record.levelno == logging.ERROR for record in caplog.records if "dead letter" in record.message)


async def test_what_the_store_does_not_take_for_now_waits_behind_the_others() -> None:
    scene = Scene(Worker, Neighbour)
    scene.store.refuse = of_worker(NOT_NOW, is_success)
    async with scene.running():
        (late,) = await scene.tasks.publish_batch([("refusals", "late")])
        for _ in range(3):
            assert await outcome(scene, "elsewhere") == "done"
        assert await scene.tasks.get_result(late) is None
        scene.store.refuse = lambda _: None
        assert await scene.tasks.wait_result(late) == "late"
    assert await dead(scene) == []


async def test_those_that_wait_for_a_store_have_one_patience_together() -> None:
    scene = Scene(Crowd)
    refused: list[Settlement] = []

    def refusing(settlement: Settlement) -> BackendError | None:
        if len(refused) >= 128:
            return None
        refused.append(settlement)
        return NOT_NOW

    scene.store.refuse = refusing
    async with scene.running():
        began = trio.current_time()
        for task in await scene.tasks.publish_batch([("crowd", str(number)) for number in range(32)]):
            await scene.tasks.wait_result(task)
        assert trio.current_time() - began < 5  # one after the other each would have paused about four times
