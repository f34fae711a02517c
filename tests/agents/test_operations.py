"""What one can ask of a system and do to it: dead letters, pauses, configuration, counts, findings."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from omniactors import Agent, AgentError, ContentError, EnvelopeError, EventEnvelope, OmniActors, RetryPolicy, Settings
from omniactors.settings import MemoryUrl
from tests.agents.support import QUICK, eventually, in_memory, running


class Picky(Agent, topic="picky", name="picky", retry=RetryPolicy(max_attempts=1)):
    accepts: bool

    async def handle(self, event: EventEnvelope[str]) -> str:
        if not type(self).accepts:
            raise {"key": KeyError, "value": ValueError}[event.payload.content](event.payload.content)
        return event.payload.content


class Sorter(Picky, topic="picky", name="sorter"):
    pass


async def dead_letters(omni: OmniActors, count: int) -> None:
    """Wait until so many events of the topic are dead."""

    async def are_there() -> bool:
        return len(await omni.streams.dlq("picky", limit=100)) >= count

    await eventually(are_there)


async def test_dead_letters_are_found_by_what_they_died_of_and_when() -> None:
    Picky.accepts = False
    async with running(Picky, Sorter) as omni:
        await omni.publish_batch([("picky", "key"), ("picky", "value")])
        await dead_letters(omni, 4)
        whole = await omni.streams.dlq("omni-stream:picky")
        assert len(whole) == 4

        async def found(**filters: Any) -> set[tuple[str, str]]:
            return {(letter.agent, letter.error_type) for letter in await omni.streams.dlq("picky", **filters)}

        assert await found(agent="picky") == {("picky", "KeyError"), ("picky", "ValueError")}
        assert await found(agent="sorter", error_type="KeyError") == {("sorter", "KeyError")}
        assert await found(reason="timeout") == set()
        assert await found(reason="handler-error", ids=[whole[0].id]) == {(whole[0].agent, whole[0].error_type)}
        assert await found(since=time.time() + 60) == set()
        assert await found(until=datetime.now(UTC), limit=1) == {(whole[0].agent, whole[0].error_type)}
        assert await omni.streams.dlq("picky", 2) == whole[:2]


async def test_a_replay_gives_dead_letters_back_to_the_agent_in_which_they_died() -> None:
    Picky.accepts = False
    async with running(Picky, Sorter) as omni:
        key, _ = await omni.publish_batch([("picky", "key"), ("picky", "value")])
        await dead_letters(omni, 4)
        Picky.accepts = True
        assert await omni.streams.replay("picky", agent="picky", error_type="KeyError") == 1

        # The failed result of the first time stands until a success takes its place, so wait_result would raise.
        async def is_done() -> bool:
            return await omni.get_result(key, agent="picky") is not None

        await eventually(is_done)
        assert len(await omni.streams.dlq("picky", agent="picky")) == 1
        assert len(await omni.streams.dlq("picky", agent="sorter")) == 2
        assert await omni.streams.replay("picky", limit=1, agent="sorter") == 1
        assert await omni.streams.purge("picky", agent="picky") == 1
        assert await omni.streams.purge("picky", limit=5) == 1
        assert await omni.streams.dlq("picky") == []
        assert await omni.streams.replay("picky") == 0


@pytest.mark.parametrize(
    ("filters", "sentence"),
    [
        ({"reason": "bad luck"}, "reason must be one of handler-error, timeout, .*, not 'bad luck'"),
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"since": datetime(2027, 1, 1)}, "since must say its time zone"),  # noqa: DTZ001 -- the point
        ({"until": "now"}, "until must be a datetime"),
        ({"ids": "17-0"}, r"for one, use ids=\['17-0'\]"),
    ],
)
async def test_a_filter_that_makes_no_sense_is_refused(filters: dict[str, Any], sentence: str) -> None:
    omni = in_memory()
    for operation in (omni.streams.dlq, omni.streams.replay, omni.streams.purge):
        with pytest.raises((ValueError, TypeError), match=sentence):
            await operation("t", **filters)
    with pytest.raises(EnvelopeError, match="non-empty"):
        await omni.streams.replay("", limit=1)


async def test_only_agents_that_there_are_can_be_paused() -> None:
    omni = in_memory()
    Picky.accepts = True
    omni.add(Picky)
    with trio.fail_after(10):
        async with omni:
            with pytest.raises(AgentError, match="there is no agent 'picki'; there are: picky"):
                await omni.agents.pause("picki")
            await omni.agents.resume("picky")
            await omni.agents.pause("webhooks")
            await omni.agents.pause("picky")
            await omni.agents.pause("picky")
            assert await omni.agents.paused() == ["picky", "webhooks"]
            await omni.agents.resume("webhooks")
            assert await omni.agents.paused() == ["picky"]
    await omni.shutdown()


async def test_configuration_is_json_by_key() -> None:
    omni = in_memory()
    assert await omni.config.get("mode") is None
    assert await omni.config.get("mode", "slow") == "slow"
    await omni.config.set("mode", {"speed": [1, 2.5, None]})
    await omni.config.set("mode", {"speed": [1]})
    await omni.config.set("empty", None)
    assert await omni.config.get("mode") == {"speed": [1]}
    assert await omni.config.get("empty", "x") is None
    assert await omni.config.list() == {"mode": {"speed": [1]}, "empty": None}
    assert await omni.config.delete("mode") is True
    assert await omni.config.delete("mode") is False
    with pytest.raises(ContentError, match=r"\$\.a"):
        await omni.config.set("bad", {"a": 1j})
    with pytest.raises(ValueError, match="key"):
        await omni.config.set("", 1)
    assert await omni.config.list() == {"empty": None}
    await omni.shutdown()


class Twice(Agent, topic="twice", name="twice", retry=QUICK):
    async def handle(self, event: EventEnvelope[bool]) -> int:
        await trio.sleep(0.01)
        if event.delivery_attempts == 1 or not event.payload.content:
            raise ValueError("not yet")
        return event.delivery_attempts


async def test_metrics_count_tries_in_omnidaemons_shape() -> None:
    async with running(Twice) as omni:
        assert await omni.metrics() == {}
        assert await omni.wait_result(await omni.publish("twice", True)) == 2
        await omni.publish("twice", False)

        async def are_counted() -> bool:
            return (await omni.metrics())["twice"]["twice"]["tasks_received"] == 5

        await eventually(are_counted)
        metrics = await omni.metrics()
    counts = metrics["twice"]["twice"]
    seconds, mean = counts["total_processing_time"], counts["avg_processing_time_sec"]
    assert 0.05 <= seconds < 5
    assert mean == pytest.approx(seconds / 5, abs=0.001)
    assert metrics == {
        "twice": {
            "twice": {
                "tasks_received": 5,
                "tasks_processed": 1,
                "tasks_failed": 4,
                "tasks_retried": 3,
                "total_processing_time": seconds,
                "avg_processing_time_sec": mean,
            }
        }
    }


async def test_the_doctor_says_what_is_paused_what_is_full_and_what_is_dead() -> None:
    Picky.accepts = False
    omni = OmniActors(settings=Settings(backend=MemoryUrl(), stream_limit=5))
    omni.add(Picky)
    with trio.fail_after(10):
        async with omni:
            healthy = {finding.check: finding.status for finding in await omni.doctor()}
            assert set(healthy.values()) == {"ok"}
            await omni.publish("picky", "key")
            await dead_letters(omni, 1)
            await omni.agents.pause("picky")
            for _ in range(4):
                await omni.publish("picky", "key")
            findings = {finding.check: finding for finding in await omni.doctor()}
            assert findings["paused agents"].message == "paused: picky"
            assert findings["room in the streams"].message == "of 5 events that a stream may hold picky has 4"
            assert findings["dead letters"].message == "picky has 1"
            ours = ("paused agents", "room in the streams", "dead letters")
            assert all(findings[check].status == "warning" and findings[check].advice for check in ours)
    await omni.shutdown()


async def test_a_topic_is_deleted_with_the_dead_letters_of_agents_that_were_deleted_before(omni: OmniActors) -> None:
    Picky.accepts = False
    omni.add(Picky)
    async with omni:
        await omni.publish("picky", "key")
        await dead_letters(omni, 1)
    await omni.agents.delete("picky")
    assert len(await omni.streams.dlq("picky")) == 1
    await omni.agents.delete_topic("picky", dead_letters=True)
    assert await omni.streams.dlq("picky") == []
    with pytest.raises(AgentError, match="there is no topic 'picky'"):
        await omni.agents.delete_topic("picky")
