"""Publishing from inside handlers and from outside, once and in batches; what is refused."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import (
    Agent,
    AgentError,
    BackendError,
    BatchFailed,
    ContentError,
    EnvelopeError,
    EventEnvelope,
    OmniActors,
    PayloadBase,
    Reply,
    RetryPolicy,
    Settings,
    StreamFull,
    TaskFailed,
)
from omniactors.settings import MemoryUrl, SqliteUrl
from tests.agents.support import QUICK, in_memory, running, until, watching

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


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


@asynccontextmanager
async def started(omni: OmniActors, *agents: type[Agent]) -> AsyncIterator[OmniActors]:
    for agent in agents:
        omni.add(agent)
    with trio.fail_after(20):
        async with omni:
            yield omni
        await omni.shutdown()


class Audit(Agent, topic="audit", name="audit"):
    seen: list[Any]

    async def handle(self, event: EventEnvelope[Any]) -> None:
        type(self).seen.append(event.payload.content)


async def test_an_agent_of_two_topics_publishes_for_each_event_although_they_have_one_id(omni: OmniActors) -> None:
    Audit.seen = []

    class Clerk(Agent, topics=("orders", "refunds"), name="clerk"):
        async def handle(self, event: EventEnvelope[str]) -> Reply:
            await self.publish("audit", f"within {event.topic}")
            await omni.publish("audit", "at once")
            return Reply(f"reply {event.topic}", reply_to="audit")

    async with started(omni, Clerk, Audit):
        await omni.publish("orders", "a", task_id="7")
        await omni.publish("refunds", "b", task_id="7")
        await until(lambda: len(Audit.seen) >= 6)
    expected = ["at once"] * 2 + [f"{how} {topic}" for how in ("reply", "within") for topic in ("orders", "refunds")]
    assert sorted(Audit.seen) == expected


async def test_a_dead_letter_that_is_replayed_publishes_and_replies_again(omni: OmniActors) -> None:
    Audit.seen = []

    class Ill(Agent, topic="ill", name="ill", retry=RetryPolicy(max_attempts=1)):
        is_well = False

        async def handle(self, event: EventEnvelope[str]) -> str:
            if not type(self).is_well:
                raise ValueError("ill")
            return "well"

    async with started(omni, Ill, Audit):
        for _ in range(2):
            Ill.is_well = False
            task_id = await omni.publish("ill", "x", reply_to="audit")
            with pytest.raises(TaskFailed):
                await omni.wait_result(task_id)
            Ill.is_well = True
            await omni.streams.replay("ill")
            assert await omni.wait_result(task_id) == "well"
        await until(lambda: len(Audit.seen) >= 2)
    assert Audit.seen == ["well", "well"]


async def test_a_retry_that_publishes_other_things_loses_none_of_them(omni: OmniActors) -> None:
    Audit.seen = []
    lists = iter([["one", "two", "two"], ["two", "three", "one", "two", "two"]])

    class Lister(Agent, topic="list", name="lister", retry=QUICK):
        async def handle(self, event: EventEnvelope[str]) -> None:
            todo = next(lists)
            await omni.publish("audit", todo[0])
            await omni.publish_batch([("audit", content) for content in todo[1:]])
            if event.delivery_attempts == 1:
                raise ValueError("after publishing")

    async with started(omni, Lister, Audit):
        await omni.wait_result(await omni.publish("list", "x"))
        await until(lambda: len(Audit.seen) >= 5)
        await trio.sleep(0.05)
    assert sorted(Audit.seen) == ["one", "three", "two", "two", "two"]


async def test_other_topics_options_and_agents_make_another_event(omni: OmniActors) -> None:
    Audit.seen = []

    class Else(Agent, topic="else", name="else"):
        async def handle(self, event: EventEnvelope[Any]) -> None:
            Audit.seen.append(("else", event.payload.content))

    class One(Agent, topic="t", name="one", retry=QUICK):
        async def handle(self, event: EventEnvelope[str]) -> None:
            await omni.publish("audit", 1, source="a" if event.delivery_attempts == 1 else "b")
            await omni.publish("audit" if event.delivery_attempts == 1 else "else", {"a": 1, "b": 2})
            if event.delivery_attempts == 1:
                raise ValueError("again")

    class Two(Agent, topic="t", name="two"):
        async def handle(self, event: EventEnvelope[str]) -> None:
            await omni.publish("audit", 1, source="a")

    async with started(omni, One, Two, Audit, Else):
        await omni.publish("t", "x")
        await until(lambda: len(Audit.seen) >= 5)
    same = {"a": 1, "b": 2}
    assert sorted(map(str, Audit.seen)) == sorted(map(str, [1, 1, 1, same, ("else", same)]))


async def test_what_was_refused_in_a_handler_may_be_published_again() -> None:
    Audit.seen = []
    omni = OmniActors(settings=Settings(backend=MemoryUrl(), stream_limit=1))
    is_open = trio.Event()

    class Full(Agent, topic="audit", name="slow"):
        async def handle(self, event: EventEnvelope[Any]) -> None:
            await is_open.wait()
            Audit.seen.append(event.payload.content)

    class Stubborn(Agent, topic="t", name="stubborn", retry=QUICK):
        async def handle(self, event: EventEnvelope[str]) -> None:
            await omni.publish("audit", "first")
            if not is_open.is_set():
                with pytest.raises(StreamFull):
                    await omni.publish("audit", "again")
                with pytest.raises(BatchFailed):
                    await omni.publish_batch([("audit", "again")])
                is_open.set()
            await omni.publish("audit", "again", wait_for_room=True)
            if event.delivery_attempts == 1:
                raise ValueError("again")

    async with started(omni, Full, Stubborn):
        await omni.wait_result(await omni.publish("t", "x"))
        await until(lambda: len(Audit.seen) >= 2)
    assert Audit.seen == ["first", "again"]


@pytest.mark.parametrize("how", ["publish", "publish_task", "publish_batch", "in a thread", "delayed"])
async def test_a_handler_that_publishes_to_its_reply_topic_in_whatever_way_has_replied(
    omni: OmniActors, how: str
) -> None:
    Audit.seen = []

    async def reply(topic: str) -> None:
        envelope = EventEnvelope(topic=topic, payload=PayloadBase(content="own"))
        match how:
            case "publish":
                await omni.publish(topic, "own")
            case "delayed":
                await omni.publish(topic, "own", delay=0.01)
            case "publish_task":
                await omni.publish_task(envelope)
            case "publish_batch":
                await omni.publish_batch([envelope])
            case _:
                await trio.to_thread.run_sync(lambda: trio.from_thread.run(omni.publish, topic, "own"))

    class First(Agent, topic="one", name="first", retry=QUICK):
        async def handle(self, event: EventEnvelope[str]) -> str:
            await reply(event.payload.reply_to or "audit")
            return "automatic"

    async with started(omni, First, Audit):
        await omni.wait_result(await omni.publish("one", "x", reply_to="audit"))
        await omni.publish("audit", "end", delay=0.05)
        await until(lambda: "end" in Audit.seen)
    assert Audit.seen == ["own", "end"]


async def test_who_publishes_to_a_topic_of_that_name_in_another_store_has_not_replied(
    omni: OmniActors, tmp_path: Path
) -> None:
    Audit.seen = []

    class Bridge(Agent, topic="one", name="bridge"):
        async def handle(self, event: EventEnvelope[str]) -> str:
            await elsewhere.publish("audit", event.payload.content)
            return "reply"

    elsewhere = OmniActors(settings=Settings(backend=SqliteUrl(tmp_path / "elsewhere.db")))
    async with elsewhere, started(omni, Bridge, Audit):
        await omni.publish("one", "x", reply_to="audit")
        await until(lambda: Audit.seen == ["reply"])


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
        ({"a": [1, object()]}, "$.a[1]"),
        ({"a": {3: "x"}}, "$.a"),
        (object(), "$"),
        ({"when": 1j}, "$.when"),
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
        await omni.publish_batch([*items, ("t", object())])
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


def test_a_batch_whose_fate_is_unknown_does_not_say_that_it_was_not_published() -> None:
    known, unknown = BackendError("full"), BackendError("the connection is lost", outcome_known=False)
    assert "1 of 2 events were not published" in str(BatchFailed(("a",), {1: known}))
    assert "2 of 2 events are not known to be published" in str(BatchFailed((), {0: unknown, 1: known}))
