"""What the embedded file cannot take: refused for that one alone, by SQLite's error code."""

from __future__ import annotations

import errno
import sqlite3
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors.errors import BackendBusy, BackendError, BackendRefused, BackendUnusable
from omniactors.streams.sqlite.backend import SqliteBackend
from omniactors.streams.sqlite.schema import translate
from tests.streams.contract_kit import done, fetch, length, numbered, numbers, record, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NO = "CREATE TRIGGER no BEFORE INSERT ON {table} WHEN {when} BEGIN SELECT RAISE(ABORT, 'never'); END"
"""A refusal by SQLite itself, of one row."""


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
        *[(code, BackendError) for code in (sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_SCHEMA)],
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
