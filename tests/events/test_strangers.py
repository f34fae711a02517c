"""What publishers put into events and what watchers ask for harms nobody else: code of values, sizes, many patterns."""

from __future__ import annotations

import sys
import tracemalloc
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from omniactors.events.bus import EventBus
from omniactors.events.event import Event
from omniactors.events.patterns import MAX_EQUALITIES, MAX_LENGTH, MAX_PATTERNS, MAX_TOKENS, Where, parse_patterns

if TYPE_CHECKING:
    from collections.abc import Callable


class HostileError(Exception):
    """What the code of a hostile value raises."""


def hostile(*_: object, **__: object) -> Any:
    raise HostileError


class Hostile:
    """Raises wherever it is asked anything, as arrays, data frames and half-closed proxies do."""

    __eq__ = __ne__ = __bool__ = __len__ = __repr__ = __str__ = __getattr__ = __sizeof__ = __contains__ = hostile
    __hash__ = hostile


class Proxy:
    """Says that it is of another class, and raises while it does."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise HostileError


class HostileText(str):
    __slots__ = ()
    __eq__ = __bool__ = __len__ = __repr__ = hostile

    def __hash__(self) -> int:
        return str.__hash__(self)


class HostileDict(dict[str, object]):
    __contains__ = __getitem__ = get = __len__ = keys = values = items = hostile


VALUES: dict[str, Callable[[], object]] = {
    "object": Hostile,
    "proxy": Proxy,
    "text": lambda: HostileText("x"),
    "dict": lambda: HostileDict(x=1),
    "key": lambda: {HostileText("x"): 1},
    "class": lambda: {Hostile: 1},
    "inside": lambda: [Hostile()],
}


@pytest.mark.parametrize("kind", VALUES)
async def test_code_of_a_value_does_not_run_where_it_is_published(kind: str) -> None:
    value = VALUES[kind]()
    bus = EventBus()
    picky = bus.subscribe(where={"data.value": "x"})
    deeper = bus.subscribe("A", where={"data.value.x": 1, "run_id": "A"})
    other = bus.subscribe(types=["loaded"])
    event = Event(run_id="A", event_type="loaded", data={"value": value})
    bus.publish(event)
    await trio.to_thread.run_sync(bus.publish, event)
    await wait_all_tasks_blocked()
    assert (other.queued, deeper.queued, bus.head) == (2, 0, 2)
    assert picky.queued == (2 if kind == "text" else 0)
    assert [kept.offset for kept in bus.history("A")] == [1, 2]


async def test_the_parts_of_an_event_are_plain() -> None:
    with pytest.raises(TypeError, match="timestamp must be a number"):
        Event(event_type="x", timestamp=Hostile())  # type: ignore[arg-type]
    for name in ("run_id", "event_id", "source"):
        with pytest.raises(TypeError, match=f"{name} must be a string"):
            Event(event_type="x", **{name: 1})  # type: ignore[arg-type]
    event = Event(run_id=HostileText("A"), event_type="x", source=HostileText("here"), timestamp=1)
    assert type(event.run_id) is type(event.source) is str
    assert type(event.timestamp) is float
    bus = EventBus()
    bus.publish(event)
    assert bus.history("A")[0].source == "here"


@pytest.mark.parametrize("thing", [None, {"event_type": "x"}, "x", object(), Event])
def test_publishing_what_is_no_event_is_a_type_error(thing: Any) -> None:
    bus = EventBus()
    with pytest.raises(TypeError, match=r"a bus publishes an Event, such as Event\(event_type='x'\), not"):
        bus.publish(thing)
    assert bus.head == 0


async def test_an_event_of_a_subclass_is_published_as_the_event_it_is() -> None:
    class Mine(Event, frozen=True):
        more: int = 1

    bus = EventBus()
    events = bus.subscribe_global()
    bus.publish(Mine(event_type="x", data={"n": 1}))
    event = await events.receive()
    assert (type(event), event.data) == (Event, {"n": 1})


class Color(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [
        (1, 1.0, True),
        (1.0, 1, True),
        (True, 1, False),
        (1, True, False),
        (None, None, True),
        (0, None, False),
        ("1", 1, False),
        (Color.RED, "red", True),
        ("red", Color.RED, True),
        ([1], 1, False),
        (float("nan"), float("nan"), False),
        (10**400, 1.5, False),
    ],
)
def test_where_compares_as_json_does(found: object, asked: object, expected: bool) -> None:
    event = Event(event_type="x", data={"n": found, "deep": {"n": found}})
    assert Where.of({"data.n": asked}).matches(event) is expected
    assert Where.of({"data.deep.n": asked}).matches(event) is expected


@pytest.mark.parametrize("value", [[1], {"a": 1}, object(), b"x", 1j, object])
def test_where_is_refused_for_what_cannot_be_compared(value: object) -> None:
    with pytest.raises(ValueError, match=r"'data\.n' can equal a text, a number, true, false or null"):
        EventBus().subscribe(where={"data.n": value})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"types": [f"a{n}" for n in range(MAX_PATTERNS + 1)]}, "8,193 patterns, and 8,192 are allowed"),
        ({"types": "a" * (MAX_LENGTH + 1)}, "has 257 characters, and 256 are allowed"),
        ({"types": ".".join("*" * (MAX_TOKENS + 1))}, r"one with '\*' may have 8 tokens, not 9"),
        ({"types": [1]}, "a pattern is a text, not int"),
        ({"where": {f"data.a{n}": 1 for n in range(MAX_EQUALITIES + 1)}}, "17 equalities, and 16 are allowed"),
        ({"where": {"data." + "a" * MAX_LENGTH: 1}}, "a path is a text of at most 256 characters"),
    ],
)
def test_what_one_watcher_may_ask_for_is_bounded(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EventBus().subscribe(**arguments)


async def test_a_publish_does_not_cost_more_for_the_patterns_of_one_watcher() -> None:
    def steps(patterns: list[str]) -> int:
        """How many steps of the interpreter a publish of a new type takes."""
        bus = EventBus()
        events = bus.subscribe(types=patterns)
        count = 0

        def tick(_frame: object, _event: object, _argument: object) -> Any:
            nonlocal count
            count += 1
            return tick

        before = sys.gettrace()
        sys.settrace(tick)
        try:
            bus.publish(Event(event_type="task.new.b.c"))
        finally:
            sys.settrace(before)
        assert events.queued == 1
        return count

    few = steps(["*.new.b.c", "x"])
    many = steps(["*.new.b.c", *(f"x{n}" for n in range(4000)), *(f"task.*.x{n}" for n in range(4000))])
    assert many < few * 2


TEXTS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=5).map(".".join)


@given(st.lists(TEXTS, min_size=1, max_size=20), st.lists(st.sampled_from("ab"), min_size=1, max_size=6).map(".".join))
def test_many_patterns_match_what_one_of_them_does(texts: list[str], event_type: str) -> None:
    alone = any(parse_patterns(text).matches(event_type) for text in texts)
    assert parse_patterns(texts).matches(event_type) == alone


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "close"])
async def test_the_memory_of_a_watcher_that_stalls_is_bounded_in_bytes(overflow: Any) -> None:
    bus = EventBus(history_per_run=1)
    events = bus.subscribe_global(capacity=10_000, overflow=overflow)
    tracemalloc.start()
    try:
        for number in range(300):
            bus.publish(Event(event_type="x", data={"text": str(number) * 300_000}))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 100_000_000  # the ring's 32 MiB, the queue's 16, the histories'
    assert 0 < events.queued < 100
    assert events.matched == events.delivered + events.dropped + events.queued
    seen = [await events.receive() for _ in range(2)]
    assert [event.offset for event in seen] == sorted(event.offset for event in seen)


async def test_one_huge_event_reaches_everybody() -> None:
    bus = EventBus()
    events, of_run = bus.subscribe_global(), bus.subscribe("A")
    bus.publish(Event(run_id="A", event_type="x", data={"text": "x" * 50_000_000}))
    bus.publish(Event(run_id="A", event_type="x"))
    assert (events.queued, of_run.queued) == (2, 2)
    bus.publish(Event(run_id="A", event_type="x", data={"text": "x" * 50_000_000}))
    assert (events.queued, events.dropped) == (2, 1)


async def test_what_is_changed_after_publishing_is_not_changed_for_watchers() -> None:
    bus = EventBus()
    events = bus.subscribe_global()
    rows, inner = [{"n": 1}], {"list": [1]}
    bus.publish(Event(event_type="x", data={"rows": rows, "inner": inner}))
    rows[0]["n"] = 2
    rows.clear()
    inner["list"].append(2)
    event = await events.receive()
    assert event.data == {"rows": [{"n": 1}], "inner": {"list": [1]}}
    with pytest.raises(TypeError, match="cannot be changed"):
        event.data["inner"]["list"] = []


async def test_data_that_holds_itself_or_is_nested_very_deeply_does_no_harm() -> None:
    ring: dict[str, Any] = {"n": 1}
    ring["ring"] = ring
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    bus = EventBus()
    events = bus.subscribe_global()
    for data in (ring, {"deep": deep}):
        bus.publish(Event(event_type="x", data=data))
        await trio.to_thread.run_sync(bus.publish, Event(event_type="x", data=data))
    await wait_all_tasks_blocked()
    assert events.matched == bus.head == 4
    while deep:  # or freeing it would recurse
        deep = deep.pop()


class Stubborn(str):
    """A text that cannot be compared."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")


@pytest.mark.parametrize(
    "asked",
    [
        {"run_id": Stubborn("r")},
        {"types": [Stubborn("a.b")]},
        {"types": Stubborn("a.*")},
        {"types": "a.b", "where": {"run_id": Stubborn("r")}},
    ],
)
def test_what_a_watcher_asks_for_runs_no_code_where_events_are_published(asked: dict[str, Any]) -> None:
    bus = EventBus()
    watcher = bus.subscribe(**asked)
    bus.publish(Event(run_id="r", event_type="a.b", data={"text": "x" * 5000}))
    bus.close_stream("r")
    assert bus.stats()["published_total"] == 1
    assert [row["queued"] for row in bus.stats()["subscribers"]] == [1]
    watcher.close()


@pytest.mark.parametrize("wrong", [1, b"r", None, Event(event_type="r"), []])
async def test_a_stream_of_no_name_is_refused_in_the_thread_that_ends_it(wrong: Any) -> None:
    bus = EventBus()
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        with pytest.raises(TypeError, match="a run_id is a text"):
            await trio.to_thread.run_sync(bus.close_stream, wrong)
        with pytest.raises(TypeError, match="a run_id is a text"):
            bus.history(wrong)
        bus.publish(Event(run_id="r", event_type="a"))
        assert len(bus.history("r")) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("wrong", [0, -1, "10", 1.5, None, True])
def test_bytes_of_a_subscription_that_are_no_number_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="max_bytes must be an integer"):
        EventBus().subscribe("r", max_bytes=wrong)
