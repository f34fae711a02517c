"""Patterns and selections, against a small model of their own."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniactors.events.bus import EventBus
from omniactors.events.event import GAP, Event
from omniactors.events.patterns import Selection, Where, parse_patterns

TOKENS = st.text(alphabet="ab_1", min_size=1, max_size=2)
TYPES = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.tuples(
    st.lists(st.one_of(TOKENS, st.just("*")), min_size=0, max_size=3), st.one_of(TOKENS, st.just("*"), st.just(">"))
).map(lambda parts: ".".join([*parts[0], parts[1]]))


def as_regex(pattern: str) -> re.Pattern[str]:
    """The model: a pattern as a regular expression."""
    parts = {"*": r"[^.]+", ">": r"[^.]+(?:\.[^.]+)*"}
    return re.compile(r"\.".join(parts.get(token, re.escape(token)) for token in pattern.split(".")))


@given(PATTERNS, TYPES)
def test_a_pattern_matches_as_its_regular_expression_does(pattern: str, event_type: str) -> None:
    assert parse_patterns(pattern).matches(event_type) == bool(as_regex(pattern).fullmatch(event_type))


@given(TYPES)
def test_a_type_matches_itself_and_the_tail_of_everything(event_type: str) -> None:
    assert parse_patterns(event_type).matches(event_type)
    assert parse_patterns(">").matches(event_type)


@pytest.mark.parametrize(
    ("pattern", "event_type", "expected"),
    [
        ("task.*", "task.completed", True),
        ("task.*", "task", False),
        ("task.*", "task.a.b", False),
        ("task.>", "task.a.b", True),
        ("task.>", "task", False),
        ("*.started", "agent.started", True),
        ("*", "agent.started", False),
        ("task", "tasks", False),
    ],
)
def test_examples(pattern: str, event_type: str, expected: bool) -> None:
    assert parse_patterns(pattern).matches(event_type) is expected


@pytest.mark.parametrize("text", ["", ".", "task.", ".task", "a..b", "task*", ">.a", "a.>.b", "a.b>"])
def test_what_is_no_pattern_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_patterns([text])


def test_no_types_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="types is empty"):
        parse_patterns([])


def test_a_single_text_is_one_pattern() -> None:
    assert parse_patterns("task.*").texts == ("task.*",)


def test_where_compares_fields_and_data() -> None:
    event = Event(event_type="task.completed", source="here", data={"agent": "greeter", "result": {"n": 1}})
    assert Where.of({"data.agent": "greeter", "source": "here", "data.result.n": 1}).matches(event)
    assert not Where.of({"data.agent": "other"}).matches(event)
    assert not Where.of({"data.missing": None}).matches(event)
    assert not Where.of({"data.agent.deeper": "greeter"}).matches(event)


@pytest.mark.parametrize("path", ["", "agent", "data..agent", "source.x", "_secret"])
def test_where_refuses_what_is_no_field(path: str) -> None:
    with pytest.raises(ValueError, match="is no field of an event"):
        Where.of({path: 1})


def test_a_selection_asks_for_everything_it_names_and_gaps_always_match() -> None:
    selection = Selection(run_id="A", types=parse_patterns("task.*"), where=Where.of({"data.n": 1}))
    assert selection.matches(Event(run_id="A", event_type="task.started", data={"n": 1}))
    assert not selection.matches(Event(run_id="B", event_type="task.started", data={"n": 1}))
    assert not selection.matches(Event(run_id="A", event_type="agent.started", data={"n": 1}))
    assert not selection.matches(Event(run_id="A", event_type="task.started", data={"n": 2}))
    assert selection.matches(Event(event_type=GAP))


def test_what_is_published_into_many_equalities_is_looked_through_once() -> None:
    event = Event(event_type="x", data={f"k{number}": {"n": number} for number in range(5000)})

    def publishing(equalities: int) -> float:
        bus = EventBus()
        kept = [bus.subscribe(where={f"data.k{number}.n": -1}) for number in range(equalities)]
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            bus.publish(event)
            times.append(time.perf_counter() - begun)
        assert sum(subscription.matched for subscription in kept) == 0
        return min(times)

    assert publishing(128) < 20 * publishing(1)
