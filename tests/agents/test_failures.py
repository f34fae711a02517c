"""What a failing handler says in the log: one line for each try, one traceback for a dead event, not thousands."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
import trio

from omniactors import Agent, Backoff, EventEnvelope, Reject, RetryAfter, RetryPolicy, TaskFailed, on
from omniactors.agents import failures, runtime
from tests.agents.support import in_memory, running, until

TWICE = RetryPolicy(max_attempts=2, backoff=Backoff(initial=0.01, maximum=0.01))


class Clumsy(Agent, topic="clumsy", name="clumsy", retry=TWICE):
    async def handle(self, event: EventEnvelope[dict[str, Any]]) -> Any:
        return event.payload.content["nope"]


class Poke:
    pass


class Poked(Agent, topic="poked", name="poked"):
    async def handle(self, event: EventEnvelope[Any]) -> None:
        raise AssertionError("never reached")

    @on
    async def poke(self, message: Poke) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.fail)

    async def fail(self) -> None:
        raise RuntimeError("poked")


def told(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


async def test_a_failed_try_says_who_failed_at_what_and_when_it_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(Clumsy) as omni:
        task_id = await omni.publish("clumsy", {})
        with pytest.raises(TaskFailed):
            await omni.wait_result(task_id)
        await until(lambda: told(caplog, logging.ERROR) != [])
    (line,) = told(caplog, logging.WARNING)
    assert line.startswith(f"agent clumsy: KeyError: 'nope'; task {task_id}, attempt 1 of 2, next in 0.0")
    assert "\n" not in line
    assert {record.name for record in caplog.records} == {"omniactors.agents"}


async def test_a_dead_event_says_why_with_the_frames_of_the_users_own_code(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Clumsy) as omni:
        task_id = await omni.publish("clumsy", {})
        with pytest.raises(TaskFailed):
            await omni.wait_result(task_id)
        await until(lambda: told(caplog, logging.ERROR) != [])
        (letter,) = await omni.streams.dlq("clumsy")
    (text,) = told(caplog, logging.ERROR)
    first, *trace = text.splitlines()
    assert first == f"agent clumsy: KeyError: 'nope'; task {task_id} is dead after 2 attempts (handler-error)"
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[1].endswith("in handle")
    assert trace[-1] == "KeyError: 'nope'"
    assert text.count('File "') == 1
    assert letter.traceback.count('File "') == 1


class Wrong(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if self.number == 1:
            raise KeyError("one")
        if self.number == 3:
            raise ValueError("three")


class Unwritable(Agent, topic="unwritable", name="unwritable"):
    async def handle(self, event: EventEnvelope[Wrong]) -> object:
        return object()


@pytest.mark.parametrize(
    ("content", "frames", "end"),
    [
        ({"number": 1}, 1, "this agent can read: KeyError: 'one'"),
        ({"number": 3}, 1, "three - at `$.content`"),
        ({"number": "x"}, 0, "Expected `int`, got `str` - at `$.content.number`"),
        ({"number": 2}, 0, "content is not JSON at $: an object is no JSON value"),
    ],
)
async def test_what_cannot_be_read_or_written_is_told_without_our_own_frames(
    content: object, frames: int, end: str
) -> None:
    async with running(Unwritable) as omni:
        with pytest.raises(TaskFailed) as failed:
            await omni.wait_result(await omni.publish("unwritable", content))
    assert failed.value.traceback.count('File "') == frames
    assert failed.value.traceback.rstrip().endswith(end)


async def test_an_event_that_is_rejected_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Agent, topic="picky", name="picky"):
        async def handle(self, event: EventEnvelope[Any]) -> None:
            raise Reject("no such customer")

    async with running(Picky) as omni:
        with pytest.raises(TaskFailed):
            await omni.wait_result(await omni.publish("picky", 1))
        await until(lambda: told(caplog, logging.ERROR) != [])
    (text,) = told(caplog, logging.ERROR)
    assert "Reject: no such customer" in text.splitlines()[0]
    assert "is dead after 1 attempt (rejected)" in text.splitlines()[0]
    assert not told(caplog, logging.WARNING)


class Hasty(Agent, topic="hasty", name="hasty", timeout=0.01, retry=RetryPolicy(max_attempts=1)):
    async def handle(self, event: EventEnvelope[Any]) -> None:
        await trio.sleep_forever()


class Numbers(Agent, topic="numbers", name="numbers"):
    async def handle(self, event: EventEnvelope[list[int]]) -> None:
        raise AssertionError("never reached")


class Odd(Agent, topic="odd", name="odd"):
    async def handle(self, event: EventEnvelope[Any]) -> Any:
        return {"x": object()}


@pytest.mark.parametrize(
    ("agent", "topic", "sentence"),
    [
        (Hasty, "hasty", "HandlerTimeout: the handler took longer than 0.01 s"),
        (Numbers, "numbers", "EntryError: the entry is no event that this agent can read: Expected `array`"),
        (Odd, "odd", "ContentError: content is not JSON at $.x: an object is no JSON value"),
    ],
)
async def test_a_dead_event_whose_sentence_says_all_shows_no_frames_of_ours(
    caplog: pytest.LogCaptureFixture, agent: type[Agent], topic: str, sentence: str
) -> None:
    async with running(agent) as omni:
        with pytest.raises(TaskFailed) as caught:
            await omni.wait_result(await omni.publish(topic, {}))
        await until(lambda: told(caplog, logging.ERROR) != [])
    (line,) = told(caplog, logging.ERROR)
    assert line.startswith(f"agent {topic}: {sentence}")
    assert "\n" not in line
    assert "File" not in caught.value.traceback


async def test_who_asks_to_be_tried_later_has_not_failed(caplog: pytest.LogCaptureFixture) -> None:
    class Patient(Agent, topic="patient", name="patient"):
        async def handle(self, event: EventEnvelope[Any]) -> int:
            if event.delivery_attempts == 1:
                raise RetryAfter(0.01)
            return 1

    async with running(Patient) as omni:
        assert await omni.wait_result(await omni.publish("patient", 1)) == 1
    assert not told(caplog, logging.WARNING)


async def test_thousands_that_fail_alike_are_counted_not_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "PERIOD", 60.0)
    omni = in_memory()
    omni.add(Clumsy, retry=RetryPolicy(max_attempts=1))
    with trio.fail_after(30):
        async with omni:
            ids = await omni.publish_batch([("clumsy", {}) for _ in range(500)])
            for task_id in ids:
                with pytest.raises(TaskFailed):
                    await omni.wait_result(task_id)
            await until(lambda: len(told(caplog, logging.ERROR)) == failures.BURST)
    assert len(told(caplog, logging.ERROR)) == failures.BURST
    assert told(caplog, logging.WARNING) == ["agent clumsy: 495 more dead events of KeyError were left out here"]


async def test_what_was_left_out_is_told_when_its_time_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "PERIOD", 0.5)
    monkeypatch.setattr(runtime, "AGENT_BACKOFF", Backoff(initial=0.001, maximum=0.001))
    async with running(Poked) as omni:
        for _ in range(failures.BURST + 2):
            await omni.agent_ref("poked").tell(Poke())
        await until(lambda: any("were left out here" in line for line in told(caplog, logging.WARNING)))
    assert "agent poked: 2 more crashes of RuntimeError were left out here" in told(caplog, logging.WARNING)


async def test_a_crash_outside_of_events_shows_no_frames_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Poked) as omni:
        await omni.agent_ref("poked").tell(Poke())
        await until(lambda: told(caplog, logging.WARNING) != [])
    (text,) = told(caplog, logging.WARNING)
    assert text.splitlines()[0] == "agent poked crashed: RuntimeError: poked"
    assert "omniactors/" not in text
    assert "trio/" not in text
    assert "test_failures.py" in text
