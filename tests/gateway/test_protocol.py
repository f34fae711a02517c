"""The wire protocol as values: what is read, what is refused, what is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniactors.events.event import GAP, Event
from omniactors.gateway.protocol import (
    CACHED,
    EQUALITY,
    MAX_EVENT,
    Bye,
    ClientPing,
    ClientPong,
    EventCache,
    FrameError,
    Hello,
    Sub,
    Subbed,
    Unsub,
    batches,
    choose_subprotocol,
    encode_event,
    gap_frame,
    is_gap,
    parse_frame,
    parse_query,
    price,
    write_frame,
)


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ('{"t":"hello"}', Hello()),
        ('{"t":"hello","token":"x","client":"me","new":[1]}', Hello(token="x", client="me")),
        ('{"id":1,"s":"a","t":"sub","types":["task.*"]}', Sub(id=1, s="a", types=["task.*"])),
        (
            '{"t":"sub","id":"q","s":2,"run":"A","since":"e-1","where":{"data.n":1},"queue":5,"overflow":"drop_oldest"}',
            Sub(id="q", s=2, run="A", since="e-1", where={"data.n": 1}, queue=5, overflow="drop_oldest"),
        ),
        ('{"t":"unsub","s":2}', Unsub(s=2)),
        ('{"t":"ping","id":9}', ClientPing(id=9)),
        ('{"t":"pong"}', ClientPong()),
    ],
)
def test_frames_of_watchers(text: str, frame: object) -> None:
    assert parse_frame(text) == frame


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"t":"nope"}',
        "{}",
        '{"t":"sub","id":7}',
        '{"t":"sub","s":1,"overflow":"wait"}',
        '{"t":"sub","s":null}',
        '{"t":"hello","token":5}',
        "\ud800",
        "[" * 5000,
    ],
)
def test_what_is_no_frame_is_refused(text: str) -> None:
    with pytest.raises(FrameError, match="not a frame of this protocol"):
        parse_frame(text)


def test_a_refusal_names_the_request_where_it_can() -> None:
    with pytest.raises(FrameError) as refused:
        parse_frame('{"t":"sub","id":7}')
    assert refused.value.id == 7
    with pytest.raises(FrameError, match="binary frames"):
        parse_frame(b"{}")


@given(st.text())
def test_garbage_is_a_frame_or_a_refusal(text: str) -> None:
    try:
        parse_frame(text)
    except FrameError as error:
        assert str(error)  # noqa: PT017 -- either way is right


@pytest.mark.parametrize(
    ("query", "frame"),
    [
        ("", None),
        ("token=x", None),
        ("types=task.*", Sub(s=0, types=["task.*"])),
        ("topics=task.*", Sub(s=0, topics=["task.*"])),
        ("types=a,b&types=c", Sub(s=0, types=["a", "b", "c"])),
        ("types=task.%3E&run=A%20B&since=e-5", Sub(s=0, types=["task.>"], run="A B", since="e-5")),
        ("run=A&queue=7&overflow=close", Sub(s=0, run="A", queue=7, overflow="close")),
    ],
)
def test_a_query_is_a_subscription(query: str, frame: Sub | None) -> None:
    assert parse_query(query) == frame


@pytest.mark.parametrize("query", ["run=A&run=B", "run=A&queue=x", "run=A&overflow=wait"])
def test_a_query_that_makes_no_sense_is_refused(query: str) -> None:
    with pytest.raises(FrameError, match="the query"):
        parse_query(query)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        (["omniactors.v1.json"], "omniactors.v1.json"),
        (["x", "omniactors.v1.msgpack", "omniactors.v1.json"], "omniactors.v1.json"),
    ],
)
def test_json_is_spoken_where_it_is_known(offered: list[str], chosen: str | None) -> None:
    assert choose_subprotocol(offered) == chosen


def test_other_subprotocols_are_refused_with_the_one_to_use() -> None:
    with pytest.raises(FrameError, match=r"not supported yet; use omniactors\.v1\.json"):
        choose_subprotocol(["omniactors.v1.msgpack"])
    with pytest.raises(FrameError, match=r"use omniactors\.v1\.json"):
        choose_subprotocol(["soap"])


def test_frames_to_watchers_have_the_names_of_the_protocol() -> None:
    subbed = Subbed(id=1, s="a", epoch="e", start=4, asked=None, resumed=True, replay=0)
    assert json.loads(write_frame(subbed)) == {
        "t": "subbed",
        "id": 1,
        "s": "a",
        "epoch": "e",
        "from": 4,
        "asked": None,
        "resumed": True,
        "replay": 0,
    }
    assert json.loads(write_frame(Bye(code=4000, why="x", retry=1.0)))["retry"] == 1.0


def test_an_event_has_the_fields_of_the_protocol() -> None:
    event = Event(run_id="A", event_type="x", data={"n": 1}, offset=3, timestamp=1.5, source="here")
    assert json.loads(encode_event(event)) == {
        "o": 3,
        "ts": 1.5,
        "run_id": "A",
        "event_type": "x",
        "source": "here",
        "data": {"n": 1},
    }


def circle() -> dict[str, Any]:
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    return ring


@pytest.mark.parametrize(
    "data",
    [{"a": {(1, 2): 3}}, {"a": "\ud800"}, {"\ud800": 1}, circle(), {"a": 10**100}],
)
def test_data_without_a_json_form_does_not_stop_the_stream(data: dict[str, Any]) -> None:
    event = Event(run_id="\ud800", event_type="x", data=data, offset=1)
    read = json.loads(encode_event(event))
    assert read["event_type"] == "x"
    assert list(read["data"]) == ["unreadable"]


def test_an_event_that_no_client_would_take_comes_without_its_data() -> None:
    read = json.loads(encode_event(Event(event_type="x", data={"text": "x" * MAX_EVENT}, offset=7)))
    assert (read["o"], read["event_type"]) == (7, "x")
    assert "too many for a frame" in read["data"]["unreadable"]


def test_values_of_unknown_types_are_named_by_their_type() -> None:
    event = Event(event_type="x", data={"a": object(), "b": float("nan"), "c": {1}})
    assert json.loads(encode_event(event))["data"] == {"a": "<object>", "b": None, "c": [1]}


def test_an_event_is_written_once_and_the_cache_is_bounded_in_bytes() -> None:
    cache = EventCache(max_bytes=3 * (1000 + CACHED))
    first = Event(event_type="x", offset=1, data={"text": "x" * 800})
    written = cache.encode(first)
    assert cache.encode(first) is written
    for offset in (2, 3):
        cache.encode(Event(event_type="x", offset=offset))
    assert cache.encode(first) is written
    for offset in (4, 5, 6):
        cache.encode(Event(event_type="x", offset=offset, data={"text": "x" * 800}))
    assert cache.encode(first) is not written


def test_a_subscription_has_a_price() -> None:
    assert price(Sub(s=1)) == (0, 1)
    frame = Sub(s="ab", types=["task.*", "x"], run="run", since="e-1", where={"data.n": 12, "source": None})
    assert price(frame) == (2 + 2 * EQUALITY, len("ab task.* x run e-1 data.n 12 source".replace(" ", "")))


@given(st.lists(st.integers(0, 60), max_size=30), st.integers(1, 100))
def test_batches_hold_every_event_in_order_and_keep_their_size(lengths: list[int], max_bytes: int) -> None:
    events = [json.dumps("x" * length).encode() for length in lengths]
    read = [json.loads(text) for text in batches("s", events, max_bytes=max_bytes)]
    assert [event for frame in read for event in frame["e"]] == ["x" * length for length in lengths]
    for frame in read:
        assert frame["n"] == len(frame["e"]) >= 1
        assert frame["n"] == 1 or sum(len(event) + 2 for event in frame["e"]) <= max_bytes


def test_a_gap_becomes_a_frame_of_its_own() -> None:
    event = Event(event_type=GAP, data={"lost": 2, "first": 3, "last": 4, "why": "overflow"}, offset=4)
    assert is_gap(event)
    frame = json.loads(write_frame(gap_frame("a", event, total=9)))
    assert frame == {"t": "gap", "s": "a", "lost": 2, "o0": 3, "o1": 4, "why": "overflow", "total": 9}
    assert not is_gap(Event(event_type=GAP))
