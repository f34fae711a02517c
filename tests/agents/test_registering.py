"""Names: which agents share one, which need one, and what becomes of an agent that is added again."""

from __future__ import annotations

import functools
import operator
import threading
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from omniactors import Agent, AgentConfig, AgentError, EventEnvelope, Mailbox, OmniActors, RetryPolicy, TaskFailed
from tests.agents.support import Message, in_memory, running, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@asynccontextmanager
async def open_system(omni: OmniActors) -> AsyncIterator[None]:
    with trio.fail_after(20):
        async with omni:
            yield
        await omni.shutdown()


async def content_of(message: Any, region: str = "") -> Any:
    return message["content"]


class Callable_:  # noqa: N801 -- an object that is called
    async def __call__(self, message: Message) -> Any:
        return message["content"]

    async def method(self, message: Message) -> Any:
        return message["content"]


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "callback",
    [
        lambda message: content_of(message),  # noqa: PLW0108 -- the point
        Callable_(),
        operator.itemgetter("content"),
        functools.partial(lambda message: message),
        functools.partial(Callable_()),
        functools.partial(content_of, object()),
        functools.partial(content_of, {1, "a"}),
        [].append,
        print,
    ],
)
def test_what_has_no_name_of_its_own_needs_one(callback: Callable[[Message], Any]) -> None:
    omni = in_memory()
    with pytest.raises(AgentError, match="cannot be told from others on t: give it a name="):
        omni.add(AgentConfig(topic="t", callback=callback))
    assert omni.add(AgentConfig(topic="t", callback=callback, name="named")) == "named"
    assert omni.agent_names() == ["named"]


def test_a_partial_is_named_after_its_function_and_its_arguments() -> None:
    def name(callback: Callable[..., Any]) -> str:
        return in_memory().add(AgentConfig(topic="t", callback=callback))

    names = [
        name(functools.partial(function, *args))
        for function in (content_of, greet)
        for args in ((), ("eu",), ("us",), ({"b": 1, "a": uuid.UUID(int=1)},))
    ]
    assert len(set(names)) == len(names)
    assert names[0] == name(content_of)
    assert names[1] == name(functools.partial(content_of, "eu")) != name(functools.partial(content_of, region="eu"))
    assert names[1].startswith("tests.agents.test_registering.content_of-")

    omni = in_memory()
    omni.add(AgentConfig(topic="t", callback=functools.partial(content_of, "eu")))
    again = AgentConfig(topic="t", callback=functools.partial(content_of, "eu"), description="the same once more")
    assert omni.add(again) == names[1]


def greet(greeting: str) -> Callable[[Message], Awaitable[str]]:
    async def greeter(message: Message) -> str:
        return f"{greeting} {message['content']}"

    return greeter


@pytest.mark.parametrize("make", [lambda: greet("hello"), lambda: Callable_().method])
def test_a_second_closure_or_method_of_the_same_name_needs_a_name(make: Callable[[], Any]) -> None:
    omni = in_memory()
    first = make()
    name = omni.add(AgentConfig(topic="t", callback=first))
    assert omni.add(AgentConfig(topic="t", callback=first)) == name
    with pytest.raises(AgentError, match="give one of them another name="):
        omni.add(AgentConfig(topic="t", callback=make()))
    assert omni.add(AgentConfig(topic="t", callback=make(), name="other")) == "other"
    assert omni.agent_names() == [name, "other"]


def test_one_class_with_other_arguments_is_another_agent_and_needs_a_name() -> None:
    class Greeter(Agent, topic="t"):
        def __init__(self, greeting: str) -> None:
            self.greeting = greeting

        async def handle(self, event: EventEnvelope[str]) -> str:
            return f"{self.greeting} {event.payload.content}"

    omni = in_memory()
    omni.add(Greeter, "hello")
    omni.add(Greeter, "hello", concurrency=2)
    with pytest.raises(AgentError, match="give one of them another name="):
        omni.add(Greeter, "good evening")


# -- one name on several topics ------------------------------------------------------------------


async def test_one_name_on_two_topics_is_two_subscriptions_of_one_agent(omni: OmniActors) -> None:
    async def orders(message: Message) -> str:
        return f"order {message['content']}"

    async def refunds(message: Message) -> str:
        return f"refund {message['content']}"

    assert await omni.register_agent(AgentConfig(name="clerk", topic="orders", callback=orders)) == "clerk"
    async with open_system(omni):
        assert await omni.register_agent(AgentConfig(name="clerk", topic="refunds", callback=refunds)) == "clerk"
        assert omni.agent_names() == ["clerk"]
        first, second = await omni.publish("orders", 1), await omni.publish("refunds", 2)
        assert await omni.wait_result(first, agent="clerk") == "order 1"
        assert await omni.wait_result(second, agent="clerk") == "refund 2"
        assert sorted((record.topic, record.name) for record in await omni.agents.list()) == [
            ("orders", "clerk"),
            ("refunds", "clerk"),
        ]
        await omni.agents.pause("clerk")
        ids = await omni.publish_batch([("orders", 3), ("refunds", 4)])
        await trio.sleep(0.05)
        assert [await omni.results.of_task(task_id) for task_id in ids] == [[], []]
        await omni.agents.resume("clerk")
        assert [await omni.wait_result(task_id) for task_id in ids] == ["order 3", "refund 4"]


def test_who_takes_over_a_topic_takes_over_all_topics_of_that_agent() -> None:
    class Both(Agent, topics=("a", "b"), name="both"):
        async def handle(self, event: EventEnvelope[Any]) -> None:
            pass

    omni = in_memory()
    omni.add(Both)
    with pytest.raises(AgentError, match="agent 'both' reads b too"):
        omni.add(Both, topic="a")
    omni.add(Both, topics=("a", "b", "c"))
    omni.add(Both, topic="d")
    assert omni.agent_names() == ["both"]


# -- again ---------------------------------------------------------------------------------------


async def test_an_agent_that_is_registered_again_replaces_the_earlier_one(omni: OmniActors) -> None:
    def answering(answer: str) -> AgentConfig:
        async def callback(_message: Message) -> str:
            return answer

        return AgentConfig(name="worker", topic="t", callback=callback)

    await omni.register_agent(answering("first"))
    await omni.register_agent(answering("second"))
    async with open_system(omni):
        assert await omni.wait_result(await omni.publish("t", 1)) == "second"
        await omni.register_agent(answering("third"))
        assert await omni.wait_result(await omni.publish("t", 1)) == "third"
        omni.add(answering("fourth"))
        await omni.register_agent(answering("fifth"))
        assert await omni.wait_result(await omni.publish("t", 1)) == "fifth"
    async with open_system(omni):
        assert await omni.wait_result(await omni.publish("t", 1)) == "fifth"


@pytest.mark.parametrize("key", [None, "n"])
async def test_no_event_is_lost_or_done_twice_while_an_agent_is_replaced(omni: OmniActors, key: str | None) -> None:
    done: list[tuple[str, int]] = []
    inside: set[str] = set()

    class Old(Agent, topic="t", name="worker", concurrency=2, key=key or (lambda event: None)):
        async def handle(self, event: EventEnvelope[dict[str, int]]) -> None:
            inside.add("old")
            await trio.sleep(0.03)
            done.append(("old", event.payload.content["n"]))
            inside.discard("old")

    class New(Old, mailbox=Mailbox(capacity=4)):
        async def handle(self, event: EventEnvelope[dict[str, int]]) -> None:
            assert not inside
            done.append(("new", event.payload.content["n"]))

    omni.add(Old)
    async with open_system(omni):
        ids = await omni.publish_batch([("t", {"n": n}) for n in range(30)])
        await until(lambda: bool(done))
        omni.add(New)
        for task_id in ids:
            await omni.wait_result(task_id)
        await until(lambda: not omni.running_tasks()["worker"])
    assert sorted(n for _, n in done) == list(range(30))
    assert {who for who, _ in done} == {"old", "new"}
    assert [n for who, n in done if who == "new"] == sorted(n for who, n in done if who == "new")


async def test_an_agent_that_is_replaced_while_it_starts_has_not_given_up(
    new_system: Callable[..., OmniActors], caplog: pytest.LogCaptureFixture
) -> None:
    starting = trio.Event()

    class Quick(Agent, topic="t", name="a"):
        async def handle(self, event: EventEnvelope[Any]) -> str:
            return "quick"

    class Slow(Agent, topic="t", name="a"):
        async def on_start(self) -> None:
            starting.set()
            await trio.sleep_forever()

        async def handle(self, event: EventEnvelope[Any]) -> str:
            raise AssertionError("never reached")

    omni = new_system(grace=0.1)
    omni.add(Quick)
    async with open_system(omni):
        omni.add(Slow)
        await starting.wait()
        omni.add(Quick)
        assert await omni.wait_result(await omni.publish("t", 1)) == "quick"
    assert not [record.getMessage() for record in caplog.records if "gave up" in record.getMessage()]


async def test_an_agent_whose_start_hangs_holds_up_no_other_one(new_system: Callable[..., OmniActors]) -> None:
    class Hanging(Agent, topic="t", name="hanging"):
        async def on_start(self) -> None:
            await trio.sleep_forever()

        async def handle(self, event: EventEnvelope[Any]) -> str:
            raise AssertionError("never reached")

    class Quick(Agent, topic="u", name="quick"):
        async def handle(self, event: EventEnvelope[Any]) -> str:
            return "quick"

    omni = new_system(grace=0.1)
    async with open_system(omni):
        omni.add(Hanging)
        await trio.testing.wait_all_tasks_blocked(0.05)
        omni.add(Quick)
        assert await omni.wait_result(await omni.publish("u", 1)) == "quick"
        omni.add(Quick, name="hanging", topic="t")
        assert await omni.wait_result(await omni.publish("t", 1)) == "quick"


async def test_one_class_runs_in_two_systems_of_one_process(new_system: Callable[..., OmniActors]) -> None:
    class Counter(Agent, topic="t", name="counter"):
        async def handle(self, event: EventEnvelope[int]) -> int:
            return event.payload.content + 1

    first, second = new_system(), new_system()
    first.add(Counter)
    second.add(Counter)
    async with open_system(first), open_system(second):
        ids = await first.publish_batch([("t", n) for n in range(20)])
        assert [await second.wait_result(task_id) for task_id in ids] == list(range(1, 21))


# -- what a callback is --------------------------------------------------------------------------


def with_asyncio(function: Callable[[Message], Awaitable[Any]]) -> Callable[[Message], Any]:
    """What every decorator that runs its function elsewhere does."""

    @functools.wraps(function)
    def call(message: Message) -> Any:
        async def run() -> Any:
            return [await function(message), threading.current_thread() is threading.main_thread()]

        return trio.run(run)

    return call


@functools.wraps(content_of)
def returning(message: Message) -> Awaitable[Any]:
    return content_of(message)


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (with_asyncio(content_of), [5, False]),
        (functools.partial(with_asyncio(content_of)), [5, False]),
        (returning, 5),
        (functools.partial(returning), 5),
        (lambda message: content_of(message), 5),  # noqa: PLW0108 -- the point
        (functools.partial(functools.partial(content_of)), 5),
        (Callable_(), 5),
        (functools.partial(Callable_()), 5),
        (Callable_().method, 5),
        (staticmethod(content_of), 5),
        (operator.itemgetter("content"), 5),
    ],
)
async def test_a_callback_is_what_its_call_returns(callback: Callable[[Message], Any], expected: Any) -> None:
    async with running(AgentConfig(topic="t", callback=callback, name="it")) as omni:
        assert await omni.wait_result(await omni.publish("t", 5)) == expected


async def test_a_plain_function_that_returns_an_awaitable_keeps_its_timeout() -> None:
    omni = in_memory()
    omni.add(
        AgentConfig(topic="t", callback=lambda _: trio.sleep_forever(), name="it"),  # noqa: ASYNC105 -- it is awaited later
        timeout=0.05,
        retry=RetryPolicy(max_attempts=1),
    )
    async with open_system(omni):
        with pytest.raises(TaskFailed, match=r"longer than 0\.05 s"):
            await omni.wait_result(await omni.publish("t", 5))


def test_a_callback_that_yields_is_refused() -> None:
    def generator(_message: Message) -> Any:
        yield 1

    async def async_generator(_message: Message) -> Any:
        yield 1

    for callback in (generator, async_generator):
        with pytest.raises(AgentError, match="is a generator"):
            AgentConfig(topic="t", callback=callback)
