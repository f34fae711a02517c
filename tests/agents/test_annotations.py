"""What handlers may take and return: refused when the class is made, if the annotation tells."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import pytest

from omniactors import Agent, AgentConfig, AgentError, EventEnvelope, OmniActors, Reply, TaskFailed
from tests.agents.support import Message, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from fractions import Fraction as ForTypeCheckers


@dataclasses.dataclass
class Order:
    number: int
    lines: list[Line]
    at: dt.datetime | None = None


class Line(msgspec.Struct):
    price: decimal.Decimal
    follows: Line | None = None


class Colour(enum.Enum):
    RED = "red"


class Point(enum.Enum):
    ORIGIN = (0, 0)


class Plain:
    """No dataclass, no struct: nobody knows how to write it."""


class Shape(Protocol):
    def area(self) -> float: ...


ORDER = Order(7, [Line(decimal.Decimal("1.50"))], dt.datetime(2026, 11, 30, tzinfo=dt.UTC))
WRITTEN = {"number": 7, "lines": [{"price": "1.50", "follows": None}], "at": "2026-11-30T00:00:00Z"}


class Shop(Agent, topic="shop", name="shop"):
    async def handle(self, event: EventEnvelope[Order]) -> Order:
        await self.publish("next", event.payload.content)
        return event.payload.content


async def test_an_order_that_is_a_dataclass_goes_all_the_way(omni: OmniActors) -> None:
    seen: list[Any] = []

    class Next(Agent, topic="next", name="next"):
        async def handle(self, event: EventEnvelope[Order]) -> Reply:
            seen.append(event.payload.content)
            return Reply({Colour.RED.value: event.payload.content}, reply_to="last")

    class Last(Agent, topic="last", name="last"):
        async def handle(self, event: EventEnvelope[dict[str, Order]]) -> list[uuid.UUID]:
            seen.append(event.payload.content)
            return [uuid.UUID(int=1)]

    for agent in (Shop, Next, Last):
        omni.add(agent)
    async with omni:
        assert await omni.wait_result(await omni.publish("shop", ORDER)) == WRITTEN
        (batched,) = await omni.publish_batch([("last", {"red": ORDER})])
        assert await omni.wait_result(batched) == ["00000000-0000-0000-0000-000000000001"]
        while len(seen) < 3:
            await omni.wait_result(await omni.publish("shop", ORDER))
    assert {type(one) for one in seen} == {Order, dict}
    assert ORDER in seen
    assert {"red": ORDER} in seen
    await omni.shutdown()


async def returned() -> int:
    return 1


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Plain(), r"\$: a Plain is no JSON value"),
        ({"a": [1j]}, r"\$\.a\[0\]: a complex is no JSON value"),
        ({"a": {1: 2}}, r"\$\.a: the key 1 is an? int"),
        ({"a": float("nan")}, r"\$\.a: nan has no form"),
        (Order(1, [Plain()]), r"\$\.lines\[0\]: a Plain"),  # type: ignore[list-item]
        (Reply({"x": Plain()}, reply_to="next"), r"\$\.x: a Plain"),
        ((number for number in range(3)), "a generator is no JSON value"),
        (lambda: 1, "a function is no JSON value"),
        (Plain, "a type is no JSON value"),
    ],
)
async def test_a_result_that_cannot_be_written_fails_its_event_with_type_and_path(value: Any, why: str) -> None:
    async def callback(_message: Message) -> Any:
        return value

    async with running(AgentConfig(topic="t", callback=callback, name="it")) as omni:
        with pytest.raises(TaskFailed, match=why) as failed:
            await omni.wait_result(await omni.publish("t", 1))
        assert failed.value.attempts == 1


async def test_a_handler_that_forgets_an_await_is_told_so() -> None:
    class Forgetful(Agent, topic="t", name="it"):
        async def handle(self, event: EventEnvelope[Any]) -> Any:
            return returned()

    async with running(Forgetful) as omni:
        with pytest.raises(TaskFailed, match="a coroutine is no JSON value; it was not awaited"):
            await omni.wait_result(await omni.publish("t", 1))


async def test_a_result_that_holds_itself_fails_its_event() -> None:
    class Ring(Agent, topic="t", name="it"):
        async def handle(self, event: EventEnvelope[Any]) -> Any:
            ring: list[Any] = []
            ring.append(ring)
            return ring

    async with running(Ring) as omni:
        with pytest.raises(TaskFailed, match="holds itself"):
            await omni.wait_result(await omni.publish("t", 1))


def make(content: Any, result: Any) -> type[Agent]:
    async def handle(self: Any, event: Any) -> Any:
        return event

    handle.__annotations__ = {"event": EventEnvelope[content], "return": result}
    return type("Made", (Agent,), {"handle": handle, "__module__": __name__})


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (Plain, "returns a Plain, which is no JSON value"),
        (list[Plain | None], "returns a Plain"),
        ("dict[str, Plain]", "returns a Plain"),
        (complex, "returns a complex"),
        (type, "returns a type"),
        (dict[int, str], "returns a dict with keys of type int"),
        (list[dict[uuid.UUID, int]], "returns a dict with keys of type uuid"),
        (dict[tuple[int, int], str], "returns a dict with keys of type tuple"),
        (Iterator[int], "returns a Iterator"),
        (Awaitable[int], "returns a Awaitable"),
        (Callable[[int], int], "returns a Callable"),
    ],
)
def test_a_result_that_never_can_be_written_is_refused_when_the_class_is_made(result: Any, why: str) -> None:
    with pytest.raises(AgentError, match=rf"^Made\.handle {why}"):
        make(Any, result)

    async def callback(message: Message) -> Any:
        return message

    callback.__annotations__["return"] = result
    with pytest.raises(AgentError, match=f"^callback callback {why}"):
        AgentConfig(topic="t", callback=callback)


@pytest.mark.parametrize(
    "result",
    [
        None,
        Any,
        object,
        Order,
        Line,
        Point,
        Shape,
        Iterable[int],
        Mapping[str, Order],
        Hashable,
        Reply | None,
        dict,
        dict[str, object],
        "ForTypeCheckers",
        "list[NotEvenThere]",
    ],
)
def test_a_result_that_can_be_written_perhaps_is_left_to_the_event(result: Any) -> None:
    make(Any, result)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (Plain, "no content can be read as Plain; a dataclass or a struct can"),
        (dict[str, list[Plain]], "no content can be read as Plain"),
        (Point, "no content can be read as <enum 'Point'>"),
        (Line | Plain, "no content can be read as .*Type unions containing a custom type"),
    ],
)
def test_content_that_never_can_be_read_is_refused_when_the_class_is_made(content: Any, why: str) -> None:
    with pytest.raises(AgentError, match=rf"^Made\.handle: {why}"):
        make(content, None)


def test_content_that_only_type_checkers_know_is_refused_with_the_remedy() -> None:
    with pytest.raises(AgentError, match="'ForTypeCheckers' is not defined; import it at run time too"):

        class Unknown(Agent, topic="t"):
            async def handle(self, event: EventEnvelope[ForTypeCheckers]) -> None:
                pass


def test_a_handler_that_yields_is_refused() -> None:
    with pytest.raises(AgentError, match=r"Yielding\.handle must return its result, and it yields"):

        class Yielding(Agent, topic="t"):
            async def handle(self, event: EventEnvelope[Any]) -> AsyncIterator[int]:  # type: ignore[override]
                yield 1
