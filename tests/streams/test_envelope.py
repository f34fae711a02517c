"""The envelope: what is refused, the wire form, and reading it back."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import os
import re
import uuid
from enum import IntEnum
from typing import Any, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniactors.errors import ContentError, EntryError, EnvelopeError
from omniactors.streams.envelope import (
    EventDecoder,
    EventEnvelope,
    PayloadBase,
    check_content,
    check_topic,
    digest_of,
    encode_event,
    new_id,
    wire_event,
)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def envelope(content: object = None, **fields: Any) -> EventEnvelope[Any]:
    return EventEnvelope(topic="greet", payload=PayloadBase(content=content), **fields)


def decode(body: bytes, content_type: object = Any) -> EventEnvelope[Any]:
    return EventDecoder(content_type).decode(body, topic="greet", entry_id="5-1", attempts=2)


# -- topics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["", "  ", None, 5, "omni-dlq:x", "a:dlq", "a:dlq:b", "a\nb", "omni.webhook"])
def test_a_topic_that_is_none_is_refused(topic: object) -> None:
    with pytest.raises(EnvelopeError, match=r"^Topic must"):
        check_topic(topic)


def test_a_topic_is_stripped_and_a_prefix_is_only_reserved_with_its_dot() -> None:
    assert check_topic("  greet.user ") == "greet.user"
    assert check_topic("omnivore") == "omnivore"
    assert check_topic("omni.webhook", internal=True) == "omni.webhook"


def test_an_envelope_strips_its_topics_and_has_an_id_and_a_time() -> None:
    event = EventEnvelope(topic=" greet ", payload=PayloadBase(content=1, reply_to=" next "))
    assert (event.topic, event.payload.reply_to) == ("greet", "next")
    assert event.id != envelope().id
    assert event.created_at > 1_700_000_000
    assert event.delivery_attempts == 1


@pytest.mark.parametrize(
    "fields", [{"id": ""}, {"id": " "}, {"id": 5}, {"delivery_attempts": 0}, {"delivery_attempts": True}]
)
def test_an_envelope_with_a_bad_field_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeError, match=next(iter(fields))):
        envelope(**fields)


def test_a_payload_that_is_none_and_a_bad_reply_topic_are_refused() -> None:
    with pytest.raises(EnvelopeError, match="PayloadBase, not dict"):
        EventEnvelope(topic="greet", payload={"content": 1})  # type: ignore[arg-type]
    with pytest.raises(EnvelopeError, match="Topic must"):
        PayloadBase(content=1, reply_to=" ")


# -- content ------------------------------------------------------------------------------------


class Color(str):  # noqa: SLOT000 -- as users write it
    """A string by inheritance."""


class Weight(float):
    """A number by inheritance, as numpy's are."""


class Level(IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Order:
    number: int
    price: Any


class Line(msgspec.Struct):
    orders: list[Any]
    note: str | msgspec.UnsetType = msgspec.UNSET


class Colour(enum.Enum):
    RED = "red"


class Hue(enum.Enum):
    NONE = float("nan")


class Model:
    """What pydantic's models look like from outside."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and bool(self.data == other.data)

    __hash__ = None  # type: ignore[assignment]

    def model_dump(self, *, mode: str, by_alias: bool) -> Any:
        if self.data == 5:
            raise KeyError(mode, by_alias)
        return self.data

    @classmethod
    def model_validate(cls, data: Any) -> Model:
        return cls({"x": data["x"]})


class Strict(msgspec.Struct):
    """A type whose own check raises what nobody expects."""

    def __post_init__(self) -> None:
        raise KeyError("never")


class Ending(msgspec.Struct):
    """A type whose own check calls sys.exit."""

    def __post_init__(self) -> None:
        raise SystemExit(3)


class Untold(dict[str, int]):
    def items(self) -> Any:
        raise KeyError("no")


class Moment(dt.datetime):
    pass


class Day(dt.date):
    pass


class Amount(decimal.Decimal):
    pass


WHEN = dt.datetime(2026, 11, 30, 12, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("content", "written"),
    [
        (Order(1, 2.5), {"number": 1, "price": 2.5}),
        (Line([Order(1, None)]), {"orders": [{"number": 1, "price": None}]}),
        ({"a": [Colour.RED]}, {"a": ["red"]}),
        (WHEN, "2026-11-30T12:05:00Z"),
        (WHEN.date(), "2026-11-30"),
        (WHEN.time(), "12:05:00"),
        (Moment(2026, 11, 30, 12, 5, tzinfo=dt.UTC), "2026-11-30T12:05:00Z"),
        (Day(2026, 11, 30), "2026-11-30"),
        (dt.timedelta(hours=1), "PT3600S"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (decimal.Decimal("1.50"), "1.50"),
        (Amount("1.50"), "1.50"),
        (b"bytes", "Ynl0ZXM="),
        (bytearray(b"bytes"), "Ynl0ZXM="),
        ({"a": {7}}, {"a": [7]}),
        (frozenset(), []),
        (Model({"x": [1]}), {"x": [1]}),
        ([Model([Order(1, 2)])], [[{"number": 1, "price": 2}]]),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),
)
def test_what_has_a_form_in_json_is_written_in_it(content: Any, written: Any) -> None:
    assert json.loads(encode_event(envelope(content)))["content"] == written
    assert digest_of(wire_event(envelope(content))) == digest_of(wire_event(envelope(content)))


@pytest.mark.parametrize(
    "content",
    [
        Order(1, 2),
        Line([1]),
        Colour.RED,
        WHEN,
        WHEN.date(),
        uuid.UUID(int=5),
        decimal.Decimal("1.50"),
        b"b",
        {7},
        Model({"x": 1}),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),
)
def test_what_was_written_of_a_type_comes_back_as_that_type(content: Any) -> None:
    assert decode(encode_event(envelope(content)), type(content)).payload.content == content
    assert decode(encode_event(envelope([content])), list[type(content)]).payload.content == [content]  # type: ignore[misc]


def test_an_enum_of_strings_may_be_a_key() -> None:
    body = encode_event(envelope({Colour.RED: 1}))
    assert decode(body, dict[Colour, int]).payload.content == {Colour.RED: 1}


def test_a_set_of_things_without_an_order_has_a_digest() -> None:
    assert digest_of(wire_event(envelope({1, "a", None})))


@pytest.mark.parametrize(
    ("content_type", "why"),
    [
        (Model, "KeyError: 'x'"),
        (Line, "Object missing required field `orders`"),
        (Strict, "KeyError: 'never'"),
        (Ending, "SystemExit: 3"),
    ],
)
def test_content_that_its_type_refuses_is_an_error_of_the_entry_whatever_it_raises(content_type: Any, why: str) -> None:
    with pytest.raises(EntryError, match=why):
        decode(b'{"content": {}}', content_type)


def test_a_pydantic_model_goes_in_and_out() -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
    invoice = pydantic.create_model("Invoice", number=(int, ...), at=(dt.datetime, ...), total=(decimal.Decimal, ...))
    content = invoice(number=1, at=WHEN, total="1.50")
    body = encode_event(envelope({"invoice": content}))
    assert json.loads(body)["content"] == {"invoice": {"number": 1, "at": "2026-11-30T12:05:00Z", "total": "1.50"}}
    assert decode(body, dict[str, invoice]).payload.content == {"invoice": content}  # type: ignore[valid-type]
    aliased = pydantic.create_model("Aliased", name=(str, pydantic.Field(alias="fullName")))
    assert decode(encode_event(envelope(aliased(fullName="x"))), aliased).payload.content == aliased(fullName="x")
    with pytest.raises(EntryError, match=r"number"):
        decode(b'{"content": {"number": "x"}}', invoice)


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (float("nan"), "$"),
        (Weight("nan"), "$"),
        ({"a": [1, float("inf")]}, "$.a[1]"),
        ({"a": {"b": 1j}}, "$.a.b"),
        ([{"x": object()}], "$[0].x"),
        ({"a": {5: 1}}, "$.a"),
        (Order, "$"),
        (Order(1, float("nan")), "$.price"),
        (Line([Order(1, decimal.Decimal("NaN"))]), "$.orders[0].price"),
        ({"a": Hue.NONE}, "$.a"),
        (Order(1, {5: 1}), "$.price"),
        ([Line([object()])], "$[0].orders[0]"),
        (Model({"a": float("inf")}), "$.a"),
        ([Model(5)], "$[0]"),
        (Untold(), "$"),
        ("\ud800", "$"),
        ({"\ud800": 1}, "$"),
    ],
)
def test_content_that_is_no_json_is_refused_with_its_path(content: object, path: str) -> None:
    with pytest.raises(ContentError) as caught:
        encode_event(envelope(content))
    assert caught.value.path == path


@given(json_values)
def test_every_json_value_passes_and_comes_back(content: Any) -> None:
    check_content(content)
    body = encode_event(envelope(content))
    assert json.loads(body)["content"] == content
    assert decode(body).payload.content == content


def test_subclasses_and_tuples_are_json_too() -> None:
    content = {Color("c"): Color("red"), "w": Weight(1.5), "l": Level.HIGH, "t": (1, (2,)), "b": True, "big": 2**70}
    body = encode_event(envelope(content))
    assert decode(body).payload.content == {"c": "red", "w": 1.5, "l": 3, "t": [1, [2]], "b": True, "big": 2**70}


# -- the wire -----------------------------------------------------------------------------------


def test_the_wire_form_is_flat_with_all_its_fields_in_order() -> None:
    event = EventEnvelope(
        topic="greet",
        payload=PayloadBase(content={"n": 1}, webhook="http://x", reply_to="next"),
        id="task",
        tenant_id="tenant",
        correlation_id="correlation",
        causation_id="cause",
        source="test",
        created_at=5.5,
    )
    assert encode_event(event) == (
        b'{"content":{"n":1},"webhook":"http://x","reply_to":"next","topic":"greet","task_id":"task",'
        b'"correlation_id":"correlation","causation_id":"cause","source":"test","tenant_id":"tenant",'
        b'"delivery_attempts":1,"created_at":5.5}'
    )
    assert decode(encode_event(event)) == msgspec.structs.replace(event, delivery_attempts=2, deliveries=2)


def test_what_a_foreign_body_leaves_out_is_filled_in_and_what_is_unknown_ignored() -> None:
    event = decode(b'{"content": "hi", "reply_to": "", "headers": {"a": 1}}')
    assert (event.topic, event.id, event.payload.content) == ("greet", "greet:5-1", "hi")
    assert (event.payload.reply_to, event.correlation_id, event.delivery_attempts) == (None, None, 2)
    assert decode(b'{"content": "hi"}').id == event.id


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"content":',
        b'{"content": 1, "task_id": 5}',
        b'{"content": "\xed\xa0\x80"}',
        b'{"content": 1, "topic": "a:dlq"}',
        b'{"content":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_body_that_is_no_event_is_an_entry_error(body: bytes) -> None:
    with pytest.raises(EntryError, match="no event that this agent can read"):
        decode(body)


class Greeting(TypedDict):
    name: str


def test_content_is_read_as_the_type_that_the_agent_named() -> None:
    assert decode(b'{"content": {"name": "A"}}', Greeting).payload.content == {"name": "A"}
    with pytest.raises(EntryError, match="name"):
        decode(b'{"content": {"name": 5}}', Greeting)


@given(st.binary(max_size=80) | json_values.map(msgspec.json.encode))
def test_garbage_is_an_event_or_an_entry_error_and_nothing_else(body: bytes) -> None:
    try:
        event = decode(body)
    except EntryError:
        return
    assert isinstance(event, EventEnvelope)


def test_ids_are_random_uuids_and_a_child_process_has_its_own() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(str(uuid.UUID(each)) == each for each in ids)
    assert {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in ids} == {(7, uuid.RFC_4122)}
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, " ".join(new_id() for _ in range(100)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    of_child = os.read(reading, 65_536).decode().split()
    os.close(reading)
    os.close(writing)
    assert len(of_child) == 100
    assert not set(of_child) & {new_id() for _ in range(1000)}
