"""What a batch costs, and its ids: rules below the backend that a user of it would not see fail."""

from __future__ import annotations

from itertools import groupby
from sqlite3 import SQLITE_LIMIT_LENGTH
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniactors.streams.backend import Want
from omniactors.streams.settlement import Publication, Settlement
from omniactors.streams.sqlite.batch import Batch
from omniactors.streams.sqlite.ids import first_id, read_id, show_id
from omniactors.streams.sqlite.operations import create_groups
from omniactors.streams.sqlite.schema import connect
from omniactors.streams.sqlite.work import Fetch, Publish, Scene, Settle
from tests.streams.contract_kit import AGENT, TOPIC, numbered, record

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

SCENE = Scene(now=1_800_000_000.0, consumer="me", dedupe_window=60.0)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = connect(None, synchronous="FULL", wait=1.0)
    create_groups(connection, [(TOPIC, AGENT)])
    yield connection
    connection.close()


def run(connection: sqlite3.Connection, work: Publish | Fetch | Settle) -> Any:
    """What the work answers, as the only one of its batch."""
    (outcome,) = Batch(connection, SCENE, 0).run([work])
    return outcome.unwrap()


def statements_of_one_life(connection: sqlite3.Connection, count: int) -> int:
    """Publish, fetch and settle `count` events; how many statements Python has run."""
    ran: list[str] = []
    connection.set_trace_callback(ran.append)
    run(connection, Publish(numbered(count)))
    fetched = run(connection, Fetch([Want(TOPIC, AGENT, count)]))
    settlements = [
        Settlement(
            key=entry.key, result=record(str(place)), publications=(Publication(topic="x", task_id="t", body=b""),)
        )
        for place, entry in enumerate(fetched.entries)
    ]
    flags = run(connection, Settle(settlements))
    assert flags == [True] * count
    connection.set_trace_callback(None)
    return sum(1 for _ in groupby(ran))  # what runs inside a trigger is reported as a repeat of its statement


def test_the_number_of_statements_does_not_depend_on_the_number_of_events(connection: sqlite3.Connection) -> None:
    assert statements_of_one_life(connection, 1) == statements_of_one_life(connection, 300) <= 7


def test_bodies_that_are_too_long_for_one_row_are_read_one_by_one(connection: sqlite3.Connection) -> None:
    bodies = [bytes([65 + number]) * 60_000 for number in range(5)]
    run(connection, Publish([Publication(topic=TOPIC, task_id="t", body=body) for body in bodies]))
    connection.setlimit(SQLITE_LIMIT_LENGTH, 100_000)
    fetched = run(connection, Fetch([Want(TOPIC, AGENT, 9)]))
    assert [entry.body for entry in fetched.entries] == bodies


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_every_body_comes_back_byte_for_byte(body: bytes) -> None:
    connection = connect(None, synchronous="FULL", wait=1.0)
    create_groups(connection, [(TOPIC, AGENT)])
    publications = [Publication(topic=TOPIC, task_id=str(number), body=body) for number in range(2)]
    run(connection, Publish(publications))
    fetched = run(connection, Fetch([Want(TOPIC, AGENT, 9)]))
    connection.close()
    assert [entry.body for entry in fetched.entries] == [body, body]


@given(st.lists(st.floats(-1e6, 1e13), min_size=2))
def test_ids_grow_whatever_the_clock_does(times: list[float]) -> None:
    last, ids = 0, []
    for now in times:
        last = first_id(last, now)
        ids.append(last)
    assert ids == sorted(set(ids))
    assert max(ids) < 1 << 63


@given(st.integers(0, (1 << 63) - 1))
def test_an_id_survives_its_showing(number: int) -> None:
    assert read_id(show_id(number)) == number


def test_an_id_shows_the_time_of_its_making() -> None:
    assert show_id(first_id(0, 1_800_000_000.25)) == "1800000000250-0"
    assert show_id(first_id(first_id(0, 1_800_000_000.25), 5.0)) == "1800000000250-1"


@pytest.mark.parametrize("text", ["", "-", "a-b", "1", "1-", "x"])
def test_what_is_no_id_belongs_to_no_entry(text: str) -> None:
    assert read_id(text) == -1
