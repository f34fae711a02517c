"""Publishing from inside handlers and from outside, once and in batches; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from omniactors import (
    Agent,
    AgentError,
    ContentError,
    EnvelopeError,
    EventEnvelope,
    OmniActors,
    PayloadBase,
    RetryPolicy,
    TaskFailed,
)
from tests.agents.support import QUICK, in_memory, running, until, watching


class Splitter(Agent, topic="split", retry=QUICK):
    async def handle(self, event: EventEnvelope[dict[str, int]]) -> str:
        for number in range(event.payload.content["parts"]):
            await self.publish("part", {"n": number})
        if event.delivery_attempts <= event.payload.content["failures"]:
            raise ValueError("after publishing")
        return "split"


class Collector(Agent, topic="part"):
    seen: list[EventEnvelope[Any]]

    async def handle(self, event: EventEnvelope[dict[str, int]]) -> None:
        type(self).seen.append(event)


async def test_what_a_failed_attempt_published_is_not_visible() -> None:
    Collector.seen = []
    async with running(Splitter, Collector) as omni:
        task_id = await omni.publish("split", {"parts": 3, "failures": 2}, correlation_id="c", tenant_id="t")
        assert await omni.wait_result(task_id) == "split"
        await until(lambda: len(Collector.seen) >= 3)
        await trio.sleep(0.05)
        assert [event.payload.content["n"] for event in Collector.seen] == [0, 1, 2]
        for event in Collector.seen:
            assert (event.correlation_id, event.causation_id, event.tenant_id) == ("c", task_id, "t")


async def test_what_a_hopeless_event_published_never_appears() -> None:
    Collector.seen = []
    async with running(Splitter, Collector) as omni:
        with pytest.raises(TaskFailed):
            await omni.wait_result(await omni.publish("split", {"parts": 3, "failures": 9}))
        assert Collector.seen == []


async def test_a_handlers_own_publish_to_its_reply_topic_replaces_the_automatic_reply() -> None:
    Collector.seen = []
    async with running(Splitter, Collector) as omni:
        await omni.wait_result(await omni.publish("split", {"parts": 1, "failures": 0}, reply_to="part"))
        await until(lambda: len(Collector.seen) >= 1)
        await trio.sleep(0.05)
        assert [event.payload.content for event in Collector.seen] == [{"n": 0}]


async def test_an_immediate_publish_inside_a_handler_is_not_repeated_by_a_retry() -> None:
    Collector.seen = []
    omni = in_memory()
    during: list[int] = []

    class Eager(Agent, topic="eager", retry=QUICK):
        async def handle(self, event: EventEnvelope[Any]) -> str:
            await omni.publish("part", {"n": 1})
            await omni.publish("part", {"n": 2})
            await until(lambda: len(Collector.seen) >= 2)
            during.append(len(Collector.seen))
            if event.delivery_attempts < 3:
                raise ValueError("again")
            return "done"

    omni.add(Eager)
    omni.add(Collector)
    with trio.fail_after(10):
        async with omni, watching(omni, "task.duplicate") as watcher:
            task_id = await omni.publish("eager", None, correlation_id="c")
            assert await omni.wait_result(task_id) == "done"
            await watcher.wait_for("task.duplicate", 4)
    assert during == [2, 2, 2]
    assert [(event.payload.content["n"], event.correlation_id, event.causation_id) for event in Collector.seen] == [
        (1, "c", task_id),
        (2, "c", task_id),
    ]


async def test_publish_outside_of_handle_belongs_to_nothing() -> None:
    class Early(Agent, topic="early"):
        async def on_start(self) -> None:
            with pytest.raises(AgentError, match=r"use omni\.publish"):
                await self.publish("part", 1)

        async def handle(self, event: EventEnvelope[Any]) -> str:
            return "ok"

    async with running(Early) as omni:
        assert await omni.wait_result(await omni.publish("early", 1)) == "ok"


async def test_an_id_is_published_once() -> None:
    Collector.seen = []
    async with running(Collector) as omni, watching(omni, "task.*") as watcher:
        for _ in range(3):
            assert await omni.publish("part", {"n": 1}, task_id="same") == "same"
        envelope = EventEnvelope(topic="part", payload=PayloadBase(content={"n": 2}), id="same")
        await omni.publish_task(envelope)
        await watcher.wait_for("task.duplicate", 3)
        await omni.wait_result("same")
        assert len(Collector.seen) == 1


@pytest.mark.parametrize("topic", ["", "   ", None, 7])
async def test_an_empty_topic_is_refused(topic: Any) -> None:
    with pytest.raises(EnvelopeError, match="non-empty"):
        await in_memory().publish(topic, {})


@pytest.mark.parametrize("topic", ["omni-dlq:x", "a:dlq", "omni.webhook"])
async def test_a_reserved_topic_is_refused(topic: str) -> None:
    with pytest.raises(EnvelopeError, match="Topic must not"):
        await in_memory().publish(topic, {})
    with pytest.raises(EnvelopeError, match="Topic must not"):
        await in_memory().publish_batch([("fine", 1), (topic, 1)])


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (float("nan"), "$"),
        ({"a": [1, float("inf")]}, "$.a[1]"),
        ({"a": {1, 2}}, "$.a"),
        ({"a": {3: "x"}}, "$.a"),
        (object(), "$"),
        ({"when": b"bytes"}, "$.when"),
        ("\ud800", "$"),
    ],
)
async def test_content_that_is_no_json_is_refused_with_its_path(content: Any, path: str) -> None:
    omni = in_memory()
    with pytest.raises(ContentError) as refused:
        await omni.publish("t", content)
    assert refused.value.path == path
    assert path in str(refused.value)
    assert await omni.streams.list() == []


async def test_content_that_holds_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(ContentError, match="holds itself"):
        await in_memory().publish("t", ring)


@pytest.mark.parametrize("webhook", ["", "ftp://x/y", "http://", "not a url", "http://[", 7])
async def test_a_webhook_is_an_http_address(webhook: Any) -> None:
    with pytest.raises(EnvelopeError, match="webhook"):
        await in_memory().publish("t", 1, webhook=webhook)


async def test_a_batch_keeps_its_order_and_is_checked_whole() -> None:
    omni = in_memory()
    items = [("t", n) for n in range(1200)]
    ids = await omni.publish_batch(items)
    assert len(set(ids)) == 1200
    (stream,) = await omni.streams.list()
    assert stream.length == 1200
    with pytest.raises(ContentError):
        await omni.publish_batch([*items, ("t", {1, 2})])
    with pytest.raises(EnvelopeError, match="item 1200"):
        await omni.publish_batch([*items, "t"])  # type: ignore[list-item]
    (stream,) = await omni.streams.list()
    assert stream.length == 1200


def test_one_system_works_over_two_runs_of_trio() -> None:
    omni = OmniActors("memory://")
    omni.add(Collector, retry=RetryPolicy(max_attempts=1))
    Collector.seen = []
    first = trio.run(omni.publish, "part", {"n": 1})

    async def work() -> None:
        with trio.fail_after(10):
            async with omni:
                await omni.wait_result(first)
                await omni.wait_result(await omni.publish("part", {"n": len(Collector.seen)}))

    trio.run(work)
    trio.run(work)
    assert [event.payload.content["n"] for event in Collector.seen] == [1, 1, 2]
