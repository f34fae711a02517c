"""Publishing for later, publishing into full streams, and events that are too large."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import trio

from omniactors import (
    Agent,
    BatchFailed,
    EnvelopeError,
    EventEnvelope,
    EventTooLarge,
    OmniActors,
    PayloadBase,
    Reply,
    RetryPolicy,
    Settings,
    StreamFull,
    TaskFailed,
)
from omniactors.agents.publishing import schedule
from omniactors.settings import MemoryUrl
from omniactors.streams.settlement import Publication
from tests.agents.faulty import Scene
from tests.agents.support import in_memory, running

LIMIT = 2000
PLAIN = Publication(topic="t", task_id="1", body=b"{}")


# -- when -------------------------------------------------------------------------------------------


def test_without_a_time_a_publication_stays_as_it_is() -> None:
    assert schedule(PLAIN, delay=None, at=None) is PLAIN


@pytest.mark.parametrize(
    ("delay", "at", "expected"),
    [
        (0, None, (0.0, None)),
        (2.5, None, (2.5, None)),
        (None, 1_800_000_000, (0.0, 1_800_000_000.0)),
        (None, datetime(2027, 1, 15, 8, tzinfo=UTC), (0.0, 1_800_000_000.0)),
        (None, datetime(2027, 1, 15, 10, tzinfo=timezone(timedelta(hours=2))), (0.0, 1_800_000_000.0)),
    ],
)
def test_a_delay_and_a_time_are_written_as_they_were_given(delay: Any, at: Any, expected: Any) -> None:
    publication = schedule(PLAIN, delay=delay, at=at)
    assert (publication.delay, publication.at) == expected


@pytest.mark.parametrize(
    ("delay", "at", "sentence"),
    [
        (1, 2, "give delay or at, not both"),
        (-0.1, None, "delay must be a finite number of seconds of at least 0, not -0.1"),
        (math.nan, None, "delay must be"),
        (math.inf, None, "delay must be"),
        (True, None, "delay must be"),
        ("1", None, "delay must be"),
        (None, datetime(2027, 1, 15), "at must say its time zone, .* 2027-01-15 00:00:00 does not"),  # noqa: DTZ001 -- the point
        (None, math.nan, "at must be a datetime with a time zone or a number of Unix seconds, not nan"),
        (None, "tomorrow", "at must be"),
    ],
)
async def test_a_time_that_makes_no_sense_is_refused_and_nothing_is_published(
    delay: Any, at: Any, sentence: str
) -> None:
    omni = in_memory()
    with pytest.raises(EnvelopeError, match=sentence):
        await omni.publish("t", 1, delay=delay, at=at)
    assert await omni.streams.list() == []


class Clock(Agent, topic="clock", name="clock"):
    async def handle(self, event: EventEnvelope[Any]) -> float:
        return time.time()


async def test_an_event_comes_when_it_is_due() -> None:
    async with running(Clock) as omni:
        begun = time.time()
        late = await omni.publish("clock", 1, at=datetime.now(UTC) + timedelta(seconds=0.4))
        soon = await omni.publish("clock", 1, delay=0.2)
        (stream,) = await omni.streams.list()
        assert stream.scheduled == 2
        now = await omni.publish("clock", 1)
        times = [await omni.wait_result(task_id) - begun for task_id in (now, soon, late)]
        assert times[0] < 0.2 <= times[1] < 0.4 <= times[2]


class Sleeper(Agent, topic="sleeper"):
    async def handle(self, event: EventEnvelope[Any]) -> str:
        return await self.publish("clock", 1, delay=0.2)


async def test_a_handler_publishes_for_later_as_part_of_its_settlement() -> None:
    async with running(Clock, Sleeper) as omni:
        begun = time.time()
        task_id = await omni.wait_result(await omni.publish("sleeper", 1))
        assert await omni.wait_result(task_id) - begun >= 0.2


async def test_a_publish_inside_a_handler_may_be_delayed_too_and_a_retry_does_not_repeat_it() -> None:
    omni = in_memory()
    ids = []

    class Eager(Agent, topic="eager"):
        async def handle(self, event: EventEnvelope[Any]) -> None:
            ids.append(await omni.publish("clock", 1, delay=60))
            if event.delivery_attempts == 1:
                raise ValueError("again")

    omni.add(Eager)
    with trio.fail_after(10):
        async with omni:
            await omni.wait_result(await omni.publish("eager", 1))
            assert len(set(ids)) == 1
            scheduled = {stream.topic: stream.scheduled for stream in await omni.streams.list()}
            assert scheduled["clock"] == 1


# -- room -------------------------------------------------------------------------------------------


FULL = StreamFull("plain", 5, 5)


async def test_a_publish_that_waits_for_room_goes_on_when_there_is_some() -> None:
    scene = Scene()
    scene.store.before["publish"] = [FULL, FULL]
    event = EventEnvelope(topic="plain", payload=PayloadBase(content=1))
    assert await scene.tasks.publish(event, wait_for_room=True) == event.id
    assert len(scene.store.calls["publish"]) == 3


async def test_a_publish_into_a_full_stream_fails_unless_it_is_to_wait() -> None:
    scene = Scene()
    scene.store.before["publish"] = [FULL]
    with pytest.raises(StreamFull, match=r"'plain' is full: it holds 5 events and may hold 5"):
        await scene.tasks.publish(EventEnvelope(topic="plain", payload=PayloadBase(content=1)))
    assert len(scene.store.calls["publish"]) == 1


async def test_waiting_for_room_ends_with_the_callers_own_scope() -> None:
    scene = Scene()
    scene.store.before["publish"] = [FULL] * 1000
    with trio.move_on_after(0.2) as scope:
        await scene.tasks.publish(EventEnvelope(topic="plain", payload=PayloadBase(content=1)), wait_for_room=True)
    assert scope.cancelled_caught
    assert 2 <= len(scene.store.calls["publish"]) < 100, "it looks again, but not all the time"


async def test_a_batch_names_what_found_no_room() -> None:
    omni = OmniActors(settings=Settings(backend=MemoryUrl(), stream_limit=700))
    with pytest.raises(BatchFailed) as failed:
        await omni.publish_batch([("t", number) for number in range(1200)])
    assert len(failed.value.published) == 500 + 200
    assert sorted(failed.value.failed) == list(range(500, 1000))
    assert isinstance(failed.value.failed[500], StreamFull)


# -- size -------------------------------------------------------------------------------------------


def small() -> OmniActors:
    return OmniActors(settings=Settings(backend=MemoryUrl(), entry_limit=LIMIT))


async def test_an_event_above_the_limit_is_refused_wherever_it_is_published() -> None:
    omni = small()
    with pytest.raises(EventTooLarge, match=r"the event for 't' has 2,\d\d\d bytes, and 2,000 are allowed"):
        await omni.publish("t", "x" * LIMIT)
    envelope = EventEnvelope(topic="t", payload=PayloadBase(content="x" * LIMIT))
    with pytest.raises(EventTooLarge):
        await omni.publish_task(envelope)
    for large in (envelope, ("t", "x" * LIMIT)):
        with pytest.raises(EventTooLarge) as refused:
            await omni.publish_batch([("t", 1), large])
        assert refused.value.__notes__ == ["in item 1 of the batch"]
    assert await omni.streams.list() == []
    await omni.publish("t", "x" * (LIMIT - 400))


class Grower(Agent, topic="grow"):
    tries: list[int]

    async def handle(self, event: EventEnvelope[str]) -> object:
        type(self).tries.append(event.delivery_attempts)
        match event.payload.content:
            case "result":
                return "x" * LIMIT
            case "reply":
                return Reply("x" * (LIMIT - 100), reply_to="next")
            case "publish":
                await self.publish("next", "x" * LIMIT)
        return "small"


@pytest.mark.parametrize(
    ("content", "tries", "sentence"),
    [
        ("result", 1, "the result has 2,002 bytes, and 2,000 are allowed"),
        ("reply", 1, r"the event for 'next' has 2,\d\d\d bytes, and 2,000 are allowed"),
    ],
)
async def test_a_result_above_the_limit_makes_its_event_dead_at_once(content: str, tries: int, sentence: str) -> None:
    Grower.tries = []
    omni = small()
    omni.add(Grower)
    with trio.fail_after(10):
        async with omni:
            with pytest.raises(TaskFailed, match=sentence):
                await omni.wait_result(await omni.publish("grow", content))
            assert len(Grower.tries) == tries
            assert await omni.wait_result(await omni.publish("grow", "small")) == "small"


async def test_a_handler_that_publishes_what_is_too_large_is_told_at_that_line() -> None:
    Grower.tries = []
    omni = small()
    omni.add(Grower, retry=RetryPolicy(max_attempts=1))
    with trio.fail_after(10):
        async with omni:
            with pytest.raises(TaskFailed, match="the event for 'next'"):
                await omni.wait_result(await omni.publish("grow", "publish"))
            (dead,) = await omni.streams.dlq("grow")
            assert (dead.error_type, "self.publish" in dead.traceback) == ("EventTooLarge", True)


async def test_an_error_with_an_endless_message_is_cut() -> None:
    class Talker(Agent, topic="talk"):
        async def handle(self, event: EventEnvelope[Any]) -> None:
            raise ValueError("x" * 1_000_000)

    async with running() as omni:
        omni.add(Talker, retry=RetryPolicy(max_attempts=1))
        with pytest.raises(TaskFailed):
            await omni.wait_result(await omni.publish("talk", 1))
        (dead,) = await omni.streams.dlq("talk")
        assert len(dead.error) == len("ValueError: ") + 16_384
