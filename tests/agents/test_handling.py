"""What becomes of an event: results, retries, dead letters, replies."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel

from omniactors import (
    Agent,
    AgentConfig,
    Backoff,
    EventEnvelope,
    Mailbox,
    PayloadBase,
    Reject,
    Reply,
    RetryAfter,
    RetryPolicy,
    SubscriptionConfig,
    TaskFailed,
)
from tests.agents.support import QUICK, Message, in_memory, running, until, watching


class Echo(Agent, topic="echo"):
    async def handle(self, event: EventEnvelope[Any]) -> Any:
        return event.payload.content


@pytest.mark.parametrize("content", [{"a": [1, None, True]}, "text", 7, 1.5, None, False, [], {}])
async def test_a_result_is_what_the_handler_returned(content: Any) -> None:
    async with running(Echo) as omni:
        task_id = await omni.publish("echo", content)
        assert await omni.wait_result(task_id) == content
        assert await omni.get_result(task_id) == content


async def test_there_is_no_result_before_the_agent_runs_and_one_afterwards() -> None:
    omni = in_memory()
    task_id = await omni.publish("echo", "early")
    assert await omni.get_result(task_id) is None
    omni.add(Echo)
    with trio.fail_after(10):
        async with omni:
            assert await omni.wait_result(task_id) == "early"


class Point(msgspec.Struct):
    x: int
    y: int


class Adder(Agent, topic="add"):
    async def handle(self, event: EventEnvelope[Point]) -> int:
        return event.payload.content.x + event.payload.content.y


async def test_content_is_decoded_to_the_annotated_type() -> None:
    async with running(Adder) as omni:
        assert await omni.wait_result(await omni.publish("add", {"x": 2, "y": 3})) == 5


async def test_content_that_does_not_fit_is_dead_lettered_with_the_reason() -> None:
    async with running(Adder) as omni:
        task_id = await omni.publish("add", {"x": "two", "y": 3})
        with pytest.raises(TaskFailed, match=r"Expected `int`, got `str` - at `\$\.content\.x`"):
            await omni.wait_result(task_id)
        (dead,) = await omni.streams.dlq("add")
        assert dead.reason == "decode"
        assert dead.failed_message["content"] == {"x": "two", "y": 3}
        assert dead.attempts == 0


class Flaky(Agent, topic="flaky", retry=QUICK):
    attempts: list[int]

    async def handle(self, event: EventEnvelope[int]) -> int:
        type(self).attempts.append(event.delivery_attempts)
        if event.delivery_attempts <= event.payload.content:
            raise ValueError(f"not yet, {event.delivery_attempts}")
        return event.delivery_attempts


async def test_a_handler_that_fails_twice_runs_three_times() -> None:
    Flaky.attempts = []
    async with running(Flaky) as omni:
        assert await omni.wait_result(await omni.publish("flaky", 2)) == 3
        assert Flaky.attempts == [1, 2, 3]
        assert await omni.streams.dlq("flaky") == []


async def test_the_default_policy_retries_within_seconds() -> None:
    class Patient(Flaky, topic="patient", retry=RetryPolicy()):
        attempts: list[int] = []  # noqa: RUF012 -- filled by the one test that has it

    async with running(Patient) as omni:
        began = time.monotonic()
        assert await omni.wait_result(await omni.publish("patient", 2)) == 3
        assert 0.7 < time.monotonic() - began < 5


async def test_a_handler_that_always_fails_ends_in_the_dead_letters_with_its_own_error() -> None:
    Flaky.attempts = []
    async with running(Flaky) as omni:
        task_id = await omni.publish("flaky", 99, correlation_id="c1", tenant_id="t1")
        with pytest.raises(TaskFailed, match=r"not yet, 3") as failed:
            await omni.wait_result(task_id)
        assert failed.value.attempts == 3
        (dead,) = await omni.streams.dlq("flaky")
        assert (dead.reason, dead.error_type, dead.error) == ("handler-error", "ValueError", "ValueError: not yet, 3")
        assert (dead.attempts, dead.retry_count) == (3, 2)
        assert "raise ValueError" in dead.traceback
        assert dead.failed_message["task_id"] == task_id
        assert msgspec.json.decode(dead.body)["tenant_id"] == "t1"
        assert await omni.get_result(task_id) is None


class Nested(Agent, topic="nested", retry=RetryPolicy(max_attempts=1)):
    async def handle(self, event: EventEnvelope[str]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fail, event.payload.content)

    async def _fail(self, what: str) -> None:
        await trio.lowlevel.checkpoint()
        if what == "reject":
            raise Reject("from a nursery")
        raise KeyError("inner")


async def test_an_error_from_a_nursery_inside_the_handler_is_told_by_its_own_name() -> None:
    async with running(Nested) as omni:
        for content in ("reject", "crash"):
            with pytest.raises(TaskFailed):
                await omni.wait_result(await omni.publish("nested", content))
        crashed, rejected = await omni.streams.dlq("nested")
        assert (rejected.reason, rejected.error) == ("rejected", "Reject: from a nursery")
        assert (crashed.reason, crashed.error_type) == ("handler-error", "KeyError")


class Judge(Agent, topic="judge", retry=QUICK):
    tries: list[float]

    async def handle(self, event: EventEnvelope[str]) -> object:
        type(self).tries.append(time.monotonic())
        match event.payload.content:
            case "reject":
                raise Reject("no use")
            case "later" if event.delivery_attempts == 1:
                raise RetryAfter(0.2)
            case "always later":
                raise RetryAfter(0)
            case "next":
                return Reply({"step": 1}, reply_to="echo")
            case "nan":
                return {"deep": [float("nan")]}
            case "keys":
                return {1: "x"}
        return "fine"


async def test_reject_dead_letters_at_once() -> None:
    Judge.tries = []
    async with running(Judge) as omni:
        with pytest.raises(TaskFailed, match="no use"):
            await omni.wait_result(await omni.publish("judge", "reject"))
        (dead,) = await omni.streams.dlq("judge")
        assert (dead.reason, dead.attempts, len(Judge.tries)) == ("rejected", 1, 1)


async def test_retry_after_sets_the_delay_and_counts_as_a_try() -> None:
    Judge.tries = []
    async with running(Judge) as omni:
        assert await omni.wait_result(await omni.publish("judge", "later")) == "fine"
        assert 0.2 <= Judge.tries[1] - Judge.tries[0] < 2
        with pytest.raises(TaskFailed):
            await omni.wait_result(await omni.publish("judge", "always later"))


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_retry_after_takes_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(ValueError, match="RetryAfter"):
        RetryAfter(seconds)


async def test_reply_names_the_next_stage_and_its_content_is_the_result() -> None:
    Judge.tries = []
    async with running(Judge, Echo) as omni, watching(omni, "task.*") as watcher:
        task_id = await omni.publish("judge", "next", correlation_id="order-7")
        assert await omni.wait_result(task_id) == {"step": 1}
        _, reply = await watcher.wait_for("task.completed", 2)
        assert (reply.data["topic"], reply.data["causation_id"], reply.run_id) == ("echo", task_id, "order-7")
        assert await omni.get_result(reply.data["task_id"]) == {"step": 1}


@pytest.mark.parametrize(("content", "path"), [("nan", "$.deep[0]"), ("keys", "the key 1")])
async def test_a_result_that_is_no_json_is_dead_lettered_at_once_and_says_where(content: str, path: str) -> None:
    Judge.tries = []
    async with running(Judge) as omni:
        with pytest.raises(TaskFailed) as failed:
            await omni.wait_result(await omni.publish("judge", content))
        assert path in failed.value.error
        assert len(Judge.tries) == 1


class Mutable(Agent, topic="mutable"):
    def __init__(self) -> None:
        self.state = {"n": 0}

    async def handle(self, event: EventEnvelope[int]) -> dict[str, int]:
        self.state["n"] += 1
        return self.state


async def test_a_result_is_taken_when_it_is_returned() -> None:
    async with running(Mutable) as omni:
        ids = await omni.publish_batch([("mutable", 0)] * 20)
        results = [(await omni.wait_result(task_id))["n"] for task_id in ids]
        assert results == list(range(1, 21))


async def test_reply_to_of_the_event_wins_over_the_agents_own() -> None:
    class Stage(Echo, topic="stage", reply_to="after.default"):
        pass

    async with running(Stage) as omni, watching(omni, "task.published") as watcher:
        await omni.publish("stage", 1, reply_to="after.event")
        await omni.publish("stage", 2)
        published = await watcher.wait_for("task.published", 4)
        replies = [event.data["topic"] for event in published if event.data["topic"] != "stage"]
        assert replies == ["after.event", "after.default"]
        lengths = {stream.topic: stream.length for stream in await omni.streams.list()}
        assert (lengths["after.event"], lengths["after.default"]) == (1, 1)


async def test_two_agents_on_one_topic_leave_two_results() -> None:
    async def one(message: Message) -> str:
        return "one"

    async def two(message: Message) -> str:
        return "two"

    configs = [AgentConfig(name=name, topic="both", callback=fn) for name, fn in (("first", one), ("second", two))]
    async with running(*configs) as omni:
        task_id = await omni.publish("both", {})
        assert await omni.wait_result(task_id, agent="first") == "one"
        assert await omni.wait_result(task_id, agent="second") == "two"
        assert await omni.get_result(task_id) in ("one", "two")
        assert await omni.get_result(task_id, agent="third") is None


async def test_a_callback_gets_omnidaemons_dict() -> None:
    seen: list[Message] = []

    def plain(message: Message) -> str:
        seen.append(message)
        return threading.current_thread().name

    async with running(AgentConfig(name="plain", topic="cb", callback=plain)) as omni:
        envelope = EventEnvelope(
            topic=" cb ",
            payload=PayloadBase(content={"f": 1}, reply_to="elsewhere"),
            id="given",
            correlation_id="c",
            tenant_id="t",
            source="s",
            created_at=12.5,
        )
        assert await omni.publish_task(event_envelope=envelope) == "given"
        assert await omni.wait_result("given") != threading.current_thread().name
        assert seen == [
            {
                "content": {"f": 1},
                "topic": "cb",
                "task_id": "given",
                "agent": "plain",
                "webhook": None,
                "reply_to": "elsewhere",
                "correlation_id": "c",
                "causation_id": None,
                "source": "s",
                "tenant_id": "t",
                "delivery_attempts": 1,
                "created_at": 12.5,
            }
        ]


async def test_dlq_retry_limit_counts_the_tries_after_the_first() -> None:
    tries: list[int] = []

    async def fail(message: Message) -> None:
        tries.append(message["delivery_attempts"])
        raise OSError("down")

    config = AgentConfig(topic="cb", callback=fail, config=SubscriptionConfig(dlq_retry_limit=0))
    async with running(config) as omni:
        with pytest.raises(TaskFailed, match="down"):
            await omni.wait_result(await omni.publish("cb", 1))
        assert tries == [1]


class Slow(Agent, topic="slow", timeout=0.05, retry=RetryPolicy(max_attempts=2, backoff=Backoff(initial=0.01))):
    async def handle(self, event: EventEnvelope[float]) -> str:
        await trio.sleep(event.payload.content)
        return "in time"


async def test_a_handler_past_its_timeout_fails_with_that_reason() -> None:
    async with running(Slow) as omni:
        assert await omni.wait_result(await omni.publish("slow", 0)) == "in time"
        with pytest.raises(TaskFailed, match=r"longer than 0\.05 s"):
            await omni.wait_result(await omni.publish("slow", 60))
        (dead,) = await omni.streams.dlq("slow")
        assert (dead.reason, dead.attempts) == ("timeout", 2)


async def test_a_late_thread_is_waited_for_before_the_next_try_and_its_result_is_dropped() -> None:
    alive: list[int] = []
    most: list[int] = []

    def stubborn(message: Message) -> str:
        alive.append(1)
        most.append(len(alive))
        if message["delivery_attempts"] == 1:
            time.sleep(0.2)
        alive.pop()
        return f"try {message['delivery_attempts']}"

    omni = in_memory()
    config = AgentConfig(name="stubborn", topic="cb", callback=stubborn)
    omni.add(config, timeout=0.05, retry=QUICK, concurrency=2)
    with trio.fail_after(10):
        async with omni:
            assert await omni.wait_result(await omni.publish("cb", 1)) == "try 2"
    assert max(most) == 1


async def test_corrupt_entries_go_to_the_dead_letters_with_their_bytes_and_the_next_go_on() -> None:
    from omniactors.streams.settlement import Publication  # noqa: PLC0415 -- only this test forges entries

    omni = in_memory()
    omni.add(Echo, name="echo")
    bodies = [b"not json", b"\xff\xfe\x00", b'{"topic": "echo"}', b"[1]", b""]
    backend = omni._backend  # noqa: SLF001 -- there is no public way to store garbage
    await backend.publish([Publication(topic="echo", task_id=str(n), body=body) for n, body in enumerate(bodies)])
    with trio.fail_after(10):
        async with omni:
            assert await omni.wait_result(await omni.publish("echo", "good")) == "good"
            # Whether others can read them is asked beside the work.
            while len(dead := await omni.streams.dlq("echo")) < len(bodies):  # noqa: ASYNC110 -- the store tells nobody
                await trio.sleep(0.01)
    assert [letter.reason for letter in dead] == ["decode"] * 5
    stored = {(letter.body, letter.body_encoding) for letter in dead}
    assert ("not json", "utf-8") in stored
    assert ("//4A", "base64") in stored


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError("name \udcff"), r"name \udcff"), (Unspeakable(), "cannot be read"), (ValueError(), "ValueError")],
)
async def test_an_error_with_an_odd_message_is_still_told(error: Exception, told: str) -> None:
    async def fail(message: Message) -> None:
        raise error

    omni = in_memory()
    omni.add(AgentConfig(topic="cb", callback=fail), retry=RetryPolicy(max_attempts=1))
    with trio.fail_after(10):
        async with omni:
            with pytest.raises(TaskFailed) as failed:
                await omni.wait_result(await omni.publish("cb", 1))
            assert told in failed.value.error
            (dead,) = await omni.streams.dlq("cb")
            assert dead.error == failed.value.error


async def test_every_step_of_a_task_is_told_on_the_bus() -> None:
    Flaky.attempts = []
    async with running(Flaky) as omni, watching(omni, "task.*") as watcher:
        task_id = await omni.publish("flaky", 1)
        assert await omni.wait_result(task_id) == 2
        await watcher.wait_for("task.completed")
        assert [event.event_type for event in watcher.seen] == [
            "task.published",
            "task.started",
            "task.failed",
            "task.retried",
            "task.started",
            "task.completed",
        ]
        assert {event.run_id for event in watcher.seen} == {task_id}
        assert (watcher.seen[2].data["error"], watcher.seen[2].data["attempt"]) == ("ValueError: not yet, 1", 1)
        assert [event.event_type async for event in omni.bus.subscribe(task_id)][-1] == "task.completed"


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError("not trio's")], ids=repr)
async def test_what_only_ends_a_program_elsewhere_fails_the_event_here(error: BaseException) -> None:
    async def fail(message: Message) -> None:
        raise error

    omni = in_memory()
    omni.add(AgentConfig(topic="cb", callback=fail), retry=RetryPolicy(max_attempts=1))
    omni.add(Echo)
    with trio.fail_after(10):
        async with omni:
            with pytest.raises(TaskFailed):
                await omni.wait_result(await omni.publish("cb", 1))
            (dead,) = await omni.streams.dlq("cb")
            assert dead.error_type == type(error).__name__
            assert await omni.wait_result(await omni.publish("echo", 1)) == 1


async def test_a_plain_function_may_return_an_awaitable() -> None:
    async def work(message: Message) -> int:
        await trio.lowlevel.checkpoint()
        return 1 + int(message["content"])

    config = AgentConfig(topic="cb", callback=lambda message: work(message), name="lambda")  # noqa: PLW0108 -- the point
    async with running(config) as omni:
        assert await omni.wait_result(await omni.publish("cb", 1)) == 2


async def test_a_retry_is_fetched_however_late_its_settlement_frees_room() -> None:
    async def once(message: Message) -> int:
        if message["delivery_attempts"] == 1:
            raise ValueError("again")
        return int(message["delivery_attempts"])

    omni = in_memory()
    policy = RetryPolicy(max_attempts=2, backoff=Backoff(initial=0.002, jitter=0))
    omni.add(AgentConfig(topic="cb", callback=once), mailbox=Mailbox(capacity=1), retry=policy)
    with trio.fail_after(10):
        async with omni:
            for _ in range(50):
                assert await omni.wait_result(await omni.publish("cb", 1)) == 2


async def test_a_retry_that_is_due_while_nothing_has_room_costs_nothing() -> None:
    tries: list[str] = []

    async def work(message: Message) -> None:
        tries.append(message["content"])
        if message["content"] == "fails" and len(tries) == 1:
            raise ValueError("again")
        if message["content"] == "blocks":
            await trio.sleep(0.3)

    omni = in_memory()
    policy = RetryPolicy(max_attempts=2, backoff=Backoff(initial=0.02, jitter=0))
    omni.add(AgentConfig(topic="cb", callback=work), mailbox=Mailbox(capacity=1), retry=policy)
    with trio.fail_after(10):
        async with omni:
            ids = await omni.publish_batch([("cb", "fails"), ("cb", "blocks")])
            await until(lambda: "blocks" in tries)
            before = time.process_time()
            await trio.sleep(0.2)
            assert time.process_time() - before < 0.1
            for task_id in ids:
                await omni.wait_result(task_id)


class Buffer:
    """Something large that a handler has in hand."""


async def test_what_a_failed_handler_held_is_let_go_at_once() -> None:
    held: list[weakref.ref[Buffer]] = []

    async def fail(_message: Message) -> None:
        buffer = Buffer()
        held.append(weakref.ref(buffer))
        raise ValueError("no")

    omni = in_memory()
    omni.add(AgentConfig(topic="cb", callback=fail), retry=RetryPolicy(max_attempts=1))
    gc.disable()  # what is left is left to the collector, and that may take long
    try:
        with trio.fail_after(10):
            async with omni:
                with pytest.raises(TaskFailed):
                    await omni.wait_result(await omni.publish("cb", 1))
                assert [reference() for reference in held] == [None]
    finally:
        gc.enable()
