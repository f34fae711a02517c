"""The event as a value, its position, and the run that it belongs to."""

from __future__ import annotations

import copy
import json
import pickle
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from omniactors.events.context import current_run, run_context
from omniactors.events.event import Event, parse_position, position

if TYPE_CHECKING:
    from collections.abc import Callable


def test_an_event_cannot_be_changed() -> None:
    given_data = {"n": 1}
    event = Event(run_id="A", event_type="task.started", data=given_data)
    with pytest.raises(AttributeError):
        event.run_id = "B"  # type: ignore[misc]
    changes: list[Callable[[Any], object]] = [
        lambda data: data.update(n=2),
        lambda data: data.pop("n"),
        lambda data: data.clear(),
        lambda data: data.setdefault("m", 1),
        lambda data: data.__setitem__("n", 2),
        lambda data: data.__delitem__("n"),
        lambda data: data.__ior__({"n": 2}),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="cannot be changed"):
            change(event.data)
    given_data["n"] = 2
    assert event.data == {"n": 1}


def test_the_data_is_a_dict_for_json_pickle_and_copy() -> None:
    event = Event(event_type="task.started", data={"n": 1})
    assert json.dumps(event.data) == '{"n": 1}'
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 -- our own bytes
    assert copy.deepcopy(event) == event
    assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"event_type": ""}, ValueError),
        ({"event_type": None}, ValueError),
        ({"event_type": "a", "data": [1]}, TypeError),
        ({"event_type": "a", "run_id": None}, TypeError),
    ],
)
def test_an_event_that_could_not_be_published_cannot_be_made(fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Event(**fields)


@given(st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True), st.integers(0, 10**17))
def test_a_position_reads_back(epoch: str, offset: int) -> None:
    assert parse_position(position(epoch, offset)) == (epoch, offset)


@pytest.mark.parametrize("text", ["", "abc", "-5", "abc-", "abc-x", "abc-1.5", "abc-\u0665", "abc-" + "9" * 40])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="position looks like"):
        parse_position(text)


def test_a_run_context_holds_inside_its_block_and_nests() -> None:
    assert current_run() == ""
    with run_context("A") as run_id:
        assert run_id == current_run() == "A"
        with run_context("B"):
            assert current_run() == "B"
        assert current_run() == "A"
    assert current_run() == ""


def test_a_run_context_is_for_one_block() -> None:
    context = run_context("A")
    with context, pytest.raises(RuntimeError, match="already entered"):
        context.__enter__()
    with pytest.raises(TypeError):
        run_context(5)  # type: ignore[arg-type]


async def test_a_run_reaches_child_tasks_and_worker_threads() -> None:
    seen = []

    async def child() -> None:
        seen.append(current_run())

    async with run_context("A"), trio.open_nursery() as nursery:
        nursery.start_soon(child)
        seen.append(await trio.to_thread.run_sync(current_run))
    assert seen == ["A", "A"]
    assert current_run() == ""
