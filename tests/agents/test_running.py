"""How agents run: concurrency, order, credit, restarts, stops."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import (
    Agent,
    AgentConfig,
    AgentError,
    Backoff,
    ChildStartError,
    EventEnvelope,
    Mailbox,
    OmniActorsError,
    RetryPolicy,
    TaskFailed,
    on,
)
from omniactors.agents import runtime
from tests.agents.support import QUICK, Message, in_memory, running, until, watching

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Gate(Agent, topic="gate"):
    """Handlers that wait until the test lets them go on."""

    opened: trio.Event
    inside: int
    most: int
    begun: list[Any]

    @classmethod
    def close(cls) -> None:
        cls.opened = trio.Event()
        cls.inside = cls.most = 0
        cls.begun = []

    async def handle(self, event: EventEnvelope[Any]) -> Any:
        cls = type(self)
        cls.begun.append(event.payload.content)
        cls.inside += 1
        cls.most = max(cls.most, cls.inside)
        try:
            await cls.opened.wait()
        finally:
            cls.inside -= 1
        return event.payload.content


async def test_one_instance_handles_one_event_at_a_time_in_order() -> None:
    Gate.close()
    async with running(Gate) as omni:
        ids = await omni.publish_batch([("gate", n) for n in range(20)])
        await until(lambda: Gate.inside == 1)
        Gate.opened.set()
        for task_id in ids:
            await omni.wait_result(task_id)
        assert Gate.most == 1
        assert Gate.begun == list(range(20))


async def test_concurrency_is_the_number_of_events_in_handlers() -> None:
    Gate.close()
    omni = in_memory()
    omni.add(Gate, concurrency=4, name="gate")
    with trio.fail_after(10):
        async with omni:
            ids = await omni.publish_batch([("gate", n) for n in range(20)])
            await until(lambda: Gate.inside == 4)
            assert omni.running_tasks()["gate"] == 4
            (stream,) = await omni.streams.list()
            # Twice the concurrency is fetched, so the next event is at hand; the rest others may take.
            assert (stream.groups[0].pending, stream.groups[0].waiting) == (8, 12)
            Gate.opened.set()
            for task_id in ids:
                await omni.wait_result(task_id)
    assert Gate.most == 4


async def test_no_more_is_taken_than_the_mailbox_holds() -> None:
    Gate.close()
    omni = in_memory()
    omni.add(Gate, concurrency=4, mailbox=Mailbox(capacity=3))
    with trio.fail_after(10):
        async with omni:
            await omni.publish_batch([("gate", n) for n in range(20)])
            await until(lambda: Gate.inside == 3)
            (stream,) = await omni.streams.list()
            assert stream.groups[0].pending == 3
            Gate.opened.set()


async def test_events_of_one_key_wait_for_each_other_and_others_pass() -> None:
    order: list[tuple[str, int]] = []
    active: Counter[str] = Counter()

    class Keyed(Agent, topic="keyed", key="user", concurrency=8):
        async def handle(self, event: EventEnvelope[dict[str, Any]]) -> None:
            user = event.payload.content["user"]
            active[user] += 1
            assert active[user] == 1
            await trio.sleep(0.001)
            order.append((user, event.payload.content["n"]))
            active[user] -= 1

    async with running(Keyed) as omni:
        items = [("keyed", {"user": user, "n": n}) for n in range(15) for user in "abc"]
        for task_id in await omni.publish_batch(items):
            await omni.wait_result(task_id)
        for user in "abc":
            assert [n for who, n in order if who == user] == list(range(15))


class Fragile(Agent, topic="fragile", retry=RetryPolicy(max_attempts=1), on_error="restart"):
    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    async def handle(self, event: EventEnvelope[str]) -> int:
        if event.payload.content == "crash":
            raise ValueError("broken")
        return type(self).made


async def test_on_error_restart_settles_the_event_and_then_restarts_the_actor() -> None:
    Fragile.made = 0
    async with running(Fragile) as omni, watching(omni, "agent.*") as watcher:
        with pytest.raises(TaskFailed, match="broken"):
            await omni.wait_result(await omni.publish("fragile", "crash"))
        assert await omni.wait_result(await omni.publish("fragile", "fine")) == 2
        (crashed,) = await watcher.wait_for("agent.crashed")
        assert "broken" in crashed.data["reason"]


class Poke:
    pass


async def test_a_failure_outside_an_event_restarts_the_actor_and_loses_no_event() -> None:
    class Talker(Agent, topic="talk"):
        made = 0

        def __init__(self) -> None:
            type(self).made += 1

        @on
        async def poke(self, message: Poke) -> None:
            raise RuntimeError("poked")

        async def handle(self, event: EventEnvelope[int]) -> int:
            return type(self).made

    omni = in_memory()
    omni.add(Talker, name="talker")
    with trio.fail_after(10):
        async with omni:
            assert await omni.wait_result(await omni.publish("talk", 1)) == 1
            ref = omni.agent_ref("talker")
            await ref.tell(Poke())
            await until(lambda: Talker.made == 2)
            assert await omni.wait_result(await omni.publish("talk", 1)) == 2


async def test_an_agent_that_gives_up_takes_only_itself_down_and_its_events_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "AGENT_BACKOFF", Backoff(initial=0.001, maximum=0.01))

    class Doomed(Agent, topic="doomed"):
        async def handle(self, event: EventEnvelope[Any]) -> None:
            raise AssertionError("never reached")

        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            if Doomed.broken:
                raise OSError("no disk")
            yield

        @on
        async def poke(self, message: Poke) -> None:
            Doomed.broken = True
            raise RuntimeError("poked")

        broken = False

    Gate.close()
    Gate.opened.set()
    omni = in_memory()
    omni.add(Doomed, name="doomed")
    omni.add(Gate)
    with trio.fail_after(30):
        async with omni, watching(omni, "agent.*", "router.*") as watcher:
            await omni.agent_ref("doomed").tell(Poke())
            await watcher.wait_for("router.paused")
            task_id = await omni.publish("doomed", 1)
            assert await omni.wait_result(await omni.publish("gate", 1)) == 1
            assert await omni.get_result(task_id) is None
            assert [event.data["agent"] for event in watcher.of("agent.gave_up")] == ["doomed"]
            streams = {stream.topic: stream for stream in await omni.streams.list()}
            assert streams["doomed"].groups[0].waiting == 1


async def test_an_agent_that_cannot_start_is_an_error_of_the_run() -> None:
    class Broken(Gate, topic="broken"):
        async def on_start(self) -> None:
            raise OSError("no licence")

    omni = in_memory()
    omni.add(Broken, name="broken")
    with pytest.raises(ChildStartError, match="no licence"):
        await omni.run()


async def test_agents_may_be_added_while_the_system_runs() -> None:
    async def shout(message: Message) -> str:
        return str(message["content"]).upper()

    async with running() as omni:
        task_id = await omni.publish("late", "hello")
        name = await omni.register_agent(AgentConfig(topic="late", callback=shout))
        assert await omni.wait_result(task_id) == "HELLO"
        assert omni.agent_names() == [name]
        assert [agent.name for agent in await omni.agents.list()] == [name]


async def test_a_stop_waits_for_running_events_and_acknowledges_them() -> None:
    Gate.close()
    omni = in_memory()
    omni.add(Gate, concurrency=2)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            scope = await nursery.start(_run, omni)
            ids = await omni.publish_batch([("gate", n) for n in range(8)])
            await until(lambda: Gate.inside == 2)
            scope.cancel()
            await trio.sleep(0.05)
            assert sum(omni.running_tasks().values()) == 2
            Gate.opened.set()
    assert [await omni.get_result(task_id) for task_id in ids[:2]] == [0, 1]
    assert Gate.begun == [0, 1]
    (stream,) = await omni.streams.list()
    assert (stream.groups[0].pending, stream.length) == (0, 6)


async def test_past_the_grace_time_events_are_released_and_delivered_again_with_attempts_unchanged() -> None:
    tries: list[tuple[int, int]] = []

    class Stuck(Agent, topic="stuck", retry=QUICK):
        async def handle(self, event: EventEnvelope[Any]) -> str:
            tries.append((event.delivery_attempts, event.deliveries))
            if len(tries) == 1:
                await trio.sleep_forever()
            return "second time"

    omni = in_memory(grace=0.1)
    omni.add(Stuck)
    task_id = await omni.publish("stuck", 1)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            scope = await nursery.start(_run, omni)
            await until(lambda: len(tries) == 1)
            scope.cancel()
        async with omni:
            assert await omni.wait_result(task_id) == "second time"
    assert tries == [(1, 1), (1, 2)]


async def test_stop_now_drops_the_grace_time() -> None:
    Gate.close()
    omni = in_memory(grace=60)
    omni.add(Gate)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            scope = await nursery.start(_run, omni)
            await omni.publish("gate", 1)
            await until(lambda: Gate.inside == 1)
            scope.cancel()
            await trio.sleep(0.02)
            omni.stop_now()
    (stream,) = await omni.streams.list()
    assert (stream.length, stream.groups[0].pending) == (1, 0)


async def _run(omni: Any, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(omni.run)
            task_status.started(scope)


async def test_a_system_runs_once_at_a_time() -> None:
    async with running() as omni:
        with pytest.raises(OmniActorsError, match="runs already"):
            await omni.run()


def test_what_is_wrong_with_an_agent_is_said_when_the_class_is_made() -> None:
    with pytest.raises(AgentError, match=r"Bad: concurrency must be an integer of at least 1, not 0"):

        class Bad(Agent, topic="t", concurrency=0):
            pass

    with pytest.raises(AgentError, match="unknown agent keyword colour"):

        class Colourful(Agent, topic="t", colour="red"):  # type: ignore[call-arg]
            pass

    with pytest.raises(AgentError, match=r"handle takes an EventEnvelope\[Content\], not <class 'int'>"):

        class Wrong(Agent, topic="t"):
            async def handle(self, event: int) -> None:  # type: ignore[override]
                pass


def test_a_handler_is_an_async_function_of_the_event() -> None:
    with pytest.raises(AgentError, match=r"Plain\.handle must be an async function"):

        class Plain(Agent, topic="t"):
            def handle(self, event: EventEnvelope[Any]) -> None:  # type: ignore[override]
                pass

    with pytest.raises(AgentError, match=r"Greedy\.handle takes one argument beside self"):

        class Greedy(Agent, topic="t"):
            async def handle(self, event: EventEnvelope[Any], more: int) -> None:  # type: ignore[override]
                pass


async def test_an_agents_own_names_do_not_get_in_the_way() -> None:
    class Named(Agent, topic="named", name="team/named"):
        options = "mine"
        content_type = "mine"

        async def work(self, item: object) -> None:
            raise AssertionError("nobody calls this")

        async def lane(self) -> None:
            raise AssertionError("nobody calls this")

        async def handle(self, event: EventEnvelope[int]) -> int:
            return event.payload.content

    omni = in_memory()
    with trio.fail_after(10):
        async with watching(omni, "agent.started") as watcher:
            omni.add(Named)
            async with omni:
                assert await omni.wait_result(await omni.publish("named", 3)) == 3
            assert [event.data["agent"] for event in watcher.seen] == ["webhooks", "team/named"]


async def test_a_block_is_entered_once_at_a_time() -> None:
    async with running() as omni:
        with pytest.raises(OmniActorsError, match="runs already"):
            async with omni:
                pass
        assert await omni.streams.list() == []


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"mailbox": Mailbox(overflow="drop_newest")}, "events are durable"),
        ({"mailbox": 7}, "mailbox must be a Mailbox"),
        ({"timeout": 0}, "timeout must be"),
        ({"limit": 0}, "limit must be an integer of at least 1, not 0"),
        ({"limit": True}, "limit must be"),
        ({"retry": 3}, "retry must be a RetryPolicy"),
        ({"on_error": "explode"}, "'resume', 'restart'"),
        ({"isolation": "process"}, "not built yet"),
        ({"name": "a:b"}, "must not hold ':'"),
        ({"name": " "}, "non-empty"),
        ({"topic": ""}, "non-empty"),
        ({"topics": "abc"}, "use topic='abc'"),
        ({"key": 5}, "key must be"),
        ({"reply_to": "omni.webhook"}, "must not begin"),
    ],
)
def test_a_keyword_that_is_wrong_is_named(keywords: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AgentError, match=sentence):
        in_memory().add(Gate, **keywords)


def test_agents_need_a_topic_a_handler_and_a_name_of_their_own() -> None:
    omni = in_memory()

    class NoTopic(Agent):
        async def handle(self, event: EventEnvelope[Any]) -> None:
            pass

    class NoHandler(Agent, topic="t"):
        pass

    with pytest.raises(AgentError, match="has no topic"):
        omni.add(NoTopic)
    with pytest.raises(AgentError, match="needs a handle"):
        omni.add(NoHandler)
    with pytest.raises(AgentError, match="not 'Gate'"):
        omni.add("Gate")  # type: ignore[arg-type]
    assert omni.add(Gate) == "tests.agents.test_running.Gate@gate"
    assert omni.add(Gate, name="another") == "another"
