"""What the embedded file cannot take: refused for that one alone, by SQLite's error code."""

from __future__ import annotations

import contextlib
import errno
import functools
import sqlite3
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec
import pytest
import trio

from omniactors.errors import BackendBusy, BackendError, BackendRefused, BackendUnusable
from omniactors.streams.backend import DeadFilter, Want
from omniactors.streams.sqlite.backend import SqliteBackend
from omniactors.streams.sqlite.schema import connect, translate
from tests.streams.contract_kit import (
    AGENT,
    TOPIC,
    dead,
    done,
    event,
    fetch,
    length,
    numbered,
    numbers,
    record,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from omniactors.streams.backend import Entry

NO = "CREATE TRIGGER no BEFORE INSERT ON {table} WHEN {when} BEGIN SELECT RAISE(ABORT, 'never'); END"
"""A refusal by SQLite itself, of one row."""


def connect_within(limit: int, path: Path | None, *, synchronous: str, wait: float) -> sqlite3.Connection:
    """A connection on which one value may have `limit` bytes."""
    connection = connect(path, synchronous=synchronous, wait=wait)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)
    return connection


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "omni.db"


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend(path)
    yield backend
    await backend.close()


def forbid(path: Path, table: str, when: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(NO.format(table=table, when=when))
    connection.close()


async def test_a_settlement_that_sqlite_never_takes_holds_up_no_other(backend: SqliteBackend, path: Path) -> None:
    await backend.publish(numbered(9))
    forbid(path, "result", "NEW.task_id = 't4'")
    async with serving(backend):
        entries = await fetch(backend, 9)
        ends = [done(entry, result=record(f"t{number}")) for number, entry in enumerate(entries)]
        outcomes = await backend.settle_many(ends)
        assert [outcome for outcome in outcomes if outcome is not True] == [outcomes[4]]
        assert isinstance(outcomes[4], BackendRefused)
        assert await length(backend) == 1
    async with serving(backend):
        assert numbers(await fetch(backend)) == [4]


async def test_a_publish_that_sqlite_never_takes_is_refused_to_its_caller_alone(
    backend: SqliteBackend, path: Path
) -> None:
    await backend.publish(numbered(1))
    forbid(path, "entry", "NEW.topic = 'never'")
    refused = 0

    async def publish(number: int) -> None:
        nonlocal refused
        try:
            await backend.publish(numbered(1, "never" if number == 3 else "work", start=number))
        except BackendRefused:
            refused += 1

    async with trio.open_nursery() as nursery:
        for number in range(1, 9):
            nursery.start_soon(publish, number)
    assert (refused, await length(backend)) == (1, 8)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *[
            (code, BackendRefused)
            for code in (sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH)
        ],
        *[(code, BackendRefused) for code in (sqlite3.SQLITE_CONSTRAINT_CHECK, sqlite3.SQLITE_RANGE)],
        *[(code, BackendError) for code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_NOMEM)],
        *[(code, BackendError) for code in (sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA)],
        *[(code, BackendBusy) for code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_SNAPSHOT, sqlite3.SQLITE_LOCKED)],
        *[(code, BackendUnusable) for code in (sqlite3.SQLITE_READONLY_DBMOVED, sqlite3.SQLITE_CORRUPT_VTAB)],
    ],
)
def test_what_an_error_means_is_told_by_its_code_and_never_by_its_words(
    code: int, kind: type[BackendError], path: Path
) -> None:
    error = sqlite3.OperationalError("string or blob too big: database is locked, the disk is full")
    error.sqlite_errorcode = code
    assert type(translate(error, path)) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "no space"), BackendError),
        (OSError(errno.EROFS, "read-only"), BackendUnusable),
        (MemoryError(), BackendError),
        (OverflowError("too large"), BackendRefused),
    ],
)
def test_what_is_no_error_of_sqlite_is_told_apart_as_well(
    error: Exception, kind: type[BackendError], path: Path
) -> None:
    assert type(translate(error, path)) is kind


# -- what is large ------------------------------------------------------------------------------


async def test_large_events_come_in_fetches_of_a_bounded_size(backend: SqliteBackend) -> None:
    body = b'{"content":"' + b"x" * (1 << 20) + b'"}'
    await backend.publish([event(str(number), body=body) for number in range(40)])
    taken: list[int] = []
    async with serving(backend):
        while sum(taken) < 40:
            fetched = await backend.fetch([Want(TOPIC, AGENT, 40)])
            assert all(entry.body == body for entry in fetched.entries)
            taken.append(len(fetched.entries))
            assert fetched.has_more == (sum(taken) < 40)
    assert max(taken) <= 16


async def test_an_event_larger_than_a_fetch_comes_alone(backend: SqliteBackend) -> None:
    body = b"x" * (20 << 20)
    await backend.publish([event("a", body=body), event("b", body=body)])
    async with serving(backend):
        for _ in range(2):
            assert [entry.body for entry in await fetch(backend)] == [body]


async def test_a_settlement_publishes_more_than_one_value_of_sqlite_may_hold(
    backend: SqliteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = functools.partial(connect_within, 4 << 20)
    monkeypatch.setattr("omniactors.streams.sqlite.database.connect", limited)
    await backend.publish(numbered(1))
    async with serving(backend):
        (entry,) = await fetch(backend)
        parts = tuple(event(f"p{number}", topic="parts", body=b'"' * (1 << 20)) for number in range(12))
        assert await backend.settle_many([done(entry, result=record("t0"), publications=parts)]) == [True]
        assert await length(backend, "parts") == 12


async def test_a_result_that_is_too_large_for_sqlite_is_refused_for_its_event_alone(
    backend: SqliteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniactors.streams.sqlite.database.connect", functools.partial(connect_within, 1 << 20))
    await backend.publish(numbered(6))
    async with serving(backend):
        entries = await fetch(backend)
        ends = [
            done(
                entry, result=record(f"t{number}", result=msgspec.Raw(b'"' + b"x" * (2_000_000 * (number == 2)) + b'"'))
            )
            for number, entry in enumerate(entries)
        ]
        outcomes = await backend.settle_many(ends)
        assert [type(outcome) for outcome in outcomes] == [bool, bool, BackendRefused, bool, bool, bool]


async def test_those_who_wait_for_large_results_all_get_them(backend: SqliteBackend) -> None:
    await backend.publish(numbered(40))
    got = 0

    async def wait(task: str) -> None:
        nonlocal got
        (found,) = await backend.wait_results(task, [])
        got += len(found.result)

    async with serving(backend), trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(wait, f"t{number}")
        entries = await fetch(backend, 40)
        large = msgspec.Raw(b'"' + b"x" * (1 << 20) + b'"')
        ends = [done(entry, result=record(f"t{number}", result=large)) for number, entry in enumerate(entries)]
        assert await backend.settle_many(ends) == [True] * 40
    assert got == 40 << 20


async def test_a_list_of_large_dead_letters_is_bounded(backend: SqliteBackend) -> None:
    await backend.publish([event(str(number), body=b"x" * (9 << 20)) for number in range(10)])
    async with serving(backend):
        for _ in range(5):
            await backend.settle_many([done(entry, dead=dead()) for entry in await fetch(backend)])
    letters = await backend.dead_letters(TOPIC, limit=10)
    assert 1 < len(letters) < 10


async def test_a_large_event_that_is_replayed_takes_its_failure_along(backend: SqliteBackend) -> None:
    await backend.publish([event("t0", body=b'{"task_id":"t0","content":"' + b"x" * 200_000 + b'"}')])
    async with serving(backend):
        (entry,) = await fetch(backend)
        await backend.settle_many([done(entry, dead=dead(), result=record("t0", failed=True))])
        assert await backend.replay_dead(TOPIC, DeadFilter(), limit=1) == 1
        assert await backend.get_results("t0") == []


# -- a disk that fails at any statement ---------------------------------------------------------


class Failing(sqlite3.Connection):
    """Fails at the statement to which `left` counts down, as a disk does."""

    left: ClassVar[int] = -1
    code: ClassVar[int] = sqlite3.SQLITE_FULL

    def execute(self, *args: Any) -> sqlite3.Cursor:
        Failing.left -= 1
        if Failing.left == 0:
            error = sqlite3.OperationalError("as the disk says")
            error.sqlite_errorcode = Failing.code
            raise error
        return super().execute(*args)


T = TypeVar("T")


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """What the call returns at the latest at the third try, after errors of ours."""
    for _ in range(2):
        with contextlib.suppress(BackendError):
            return await call()
    return await call()


async def live(path: Path, failing: int) -> bool:
    """One event from its publish to its end while statement number `failing` fails; True when there were so many."""
    Failing.left = failing
    backend = SqliteBackend(path)
    await insist(lambda: backend.publish(numbered(1)))
    async with trio.open_nursery() as nursery:
        await insist(lambda: nursery.start(backend.serve))
        entries: list[Entry] = []
        while not entries:
            entries = await insist(lambda: fetch(backend))
        outcome: object = None
        while outcome is not True:
            (outcome,) = await insist(lambda: backend.settle_many([done(entries[0], result=record("t0"))]))
            assert outcome is True or isinstance(outcome, BackendError)
        assert len(await insist(lambda: backend.get_results("t0"))) == 1
        assert await insist(lambda: length(backend)) == 0
        nursery.cancel_scope.cancel()
    await backend.close()
    return Failing.left <= 0


@pytest.mark.parametrize(
    "code",
    [
        sqlite3.SQLITE_FULL,
        *(pytest.param(code, marks=pytest.mark.slow) for code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY)),
    ],
)
async def test_whatever_statement_fails_once_nothing_is_lost_and_nothing_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Failing))
    monkeypatch.setattr(Failing, "code", code)
    failing = 0
    with trio.fail_after(60):
        while True:
            failing += 1
            folder = tmp_path / str(failing)
            if not await live(folder / "omni.db", failing):
                break
    assert failing > 30
