"""Files of older versions: they are led to the present schema with all that is in them."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors.errors import BackendError
from omniactors.streams.backend import EVERY_DEAD_LETTER, Want
from omniactors.streams.sqlite.backend import SqliteBackend
from omniactors.streams.sqlite.tables import SCHEMA_VERSION
from tests.streams.contract_kit import AGENT, LIMIT, TOPIC, event, fetch, numbered, numbers, serving, settle_all, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

VERSION_1 = """
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
CREATE TABLE clock (last_id INTEGER NOT NULL);
CREATE TABLE entry (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, body NOT NULL);
CREATE INDEX entry_topic ON entry (topic, id);
CREATE TABLE grp (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, agent TEXT NOT NULL, cursor INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, agent)
);
CREATE TABLE pending (
    grp INTEGER NOT NULL, entry INTEGER NOT NULL, consumer TEXT, attempts INTEGER NOT NULL,
    crashes INTEGER NOT NULL, due REAL NOT NULL, PRIMARY KEY (grp, entry)
) WITHOUT ROWID;
CREATE INDEX pending_entry ON pending (entry);
CREATE INDEX pending_due ON pending (grp, due, entry) WHERE consumer IS NULL;
CREATE TABLE dead (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, agent TEXT NOT NULL, entry INTEGER NOT NULL, reason TEXT NOT NULL,
    error_type TEXT NOT NULL, error TEXT NOT NULL, traceback TEXT NOT NULL, attempts INTEGER NOT NULL,
    failed_at REAL NOT NULL, body NOT NULL
);
CREATE INDEX dead_topic ON dead (topic, id);
CREATE TABLE result (
    id INTEGER PRIMARY KEY, task_id TEXT NOT NULL, agent TEXT NOT NULL, status TEXT NOT NULL,
    processed_at REAL NOT NULL, expires REAL NOT NULL, record TEXT NOT NULL, UNIQUE (task_id, agent)
);
CREATE INDEX result_expires ON result (expires);
CREATE TABLE dedupe (
    topic TEXT NOT NULL, task_id TEXT NOT NULL, entry INTEGER NOT NULL, expires REAL NOT NULL,
    PRIMARY KEY (topic, task_id)
) WITHOUT ROWID;
CREATE INDEX dedupe_expires ON dedupe (expires);
CREATE TABLE agent (
    topic TEXT NOT NULL, name TEXT NOT NULL, record TEXT NOT NULL, PRIMARY KEY (topic, name)
) WITHOUT ROWID;
CREATE TABLE consumer (
    id TEXT PRIMARY KEY, pid INTEGER NOT NULL, host TEXT NOT NULL, started_at REAL NOT NULL, gateway TEXT
) WITHOUT ROWID;
PRAGMA application_id = 1869442665;
PRAGMA user_version = 1;
"""
"""The file as version 1 made it."""

FIRST = (int(time.time()) - 100) * 1000 << 20
"""The id of entry 0."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Entries 0 to 5: 0 is at work at a consumer that died, 1 waits to be tried again, 2 and 3 are new to the agent.

    Of 4 and 5, in another topic, nobody knows; one event is dead, one has a result, one is remembered.
    """
    path = tmp_path / "omni.db"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.execute("INSERT INTO clock VALUES (?)", (FIRST + 5,))
    for number in range(6):
        body: str | bytes = b"\xff" if number == 5 else f'{{"n":{number}}}'
        topic = TOPIC if number < 4 else "else"
        connection.execute("INSERT INTO entry VALUES (?, ?, ?)", (FIRST + number, topic, body))
    connection.execute("INSERT INTO grp VALUES (7, ?, ?, ?)", (TOPIC, AGENT, FIRST + 1))
    connection.execute("INSERT INTO pending VALUES (7, ?, '1-dead', 0, 2, 0)", (FIRST,))
    connection.execute("INSERT INTO pending VALUES (7, ?, NULL, 1, 0, ?)", (FIRST + 1, time.time() + 500))
    letter = (TOPIC, AGENT, 5, "rejected", "E", "it broke", "", 4, time.time(), '{"n":9}')
    connection.execute("INSERT INTO dead VALUES (3, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", letter)
    result = '{"task_id":"r","topic":"work","agent":"worker","status":"success","result":[1],"processed_at":5.0}'
    connection.execute(
        "INSERT INTO result VALUES (1, 'r', ?, 'success', 5.0, ?, ?)", (AGENT, time.time() + 500, result)
    )
    connection.execute("INSERT INTO dedupe VALUES (?, 'known', ?, ?)", (TOPIC, FIRST + 2, time.time() + 500))
    connection.execute("INSERT INTO agent VALUES (?, ?, ?)", (TOPIC, AGENT, '{"topic":"work","name":"worker"}'))
    connection.execute("INSERT INTO consumer VALUES ('1-dead', 1, 'here', 1.0, NULL)")
    connection.commit()
    connection.close()
    return path


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend(path)
    with trio.fail_after(LIMIT):
        yield backend
    await backend.close()


async def test_what_a_file_of_version_1_held_is_all_there(backend: SqliteBackend) -> None:
    info = await stream(backend)
    (group,) = info.groups
    assert (info.length, info.scheduled) == (4, 0)
    assert (group.waiting, group.pending, group.delayed, group.dead) == (2, 1, 1, 1)
    assert (await stream(backend, "else")).length == 2
    assert [result.result for result in await backend.get_results("r")] == [[1]]
    assert [agent.name for agent in await backend.list_agents()] == [AGENT]
    assert [letter.failed_message for letter in await backend.dead_letters(TOPIC, limit=9)] == [{"n": 9}]
    (fate,) = await backend.publish([event("known", dedupe=True)])
    assert fate.duplicate
    assert (await backend.metrics(), await backend.paused(), await backend.config()) == ([], frozenset(), {})


async def test_work_goes_on_where_it_was(backend: SqliteBackend) -> None:
    async with serving(backend):
        fetched = await backend.fetch([Want(TOPIC, AGENT, 9, limit=2)])
        while not fetched.entries:  # the dead consumer's entry counts until it is taken over
            await backend.wait({TOPIC: fetched.position})
            fetched = await backend.fetch([Want(TOPIC, AGENT, 9, limit=2)])
        entries = fetched.entries
        while len(entries) < 3:
            entries += await fetch(backend)
        assert sorted(numbers(entries)) == [0, 2, 3]
        assert {number: entry.crashes for number, entry in zip(numbers(entries), entries, strict=True)}[0] == 3
        await settle_all(backend, entries)
        assert await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=9) == 1
        await backend.publish(numbered(1, start=10))
        assert numbers(await fetch(backend)) == [9, 10]
        other = await fetch(backend, topic="else", agent="new")
        assert [entry.body for entry in other] == [b'{"n":4}', b"\xff"]
        await settle_all(backend, other)
        assert (await stream(backend, "else")).length == 0
        assert (await stream(backend)).groups[0].delayed == 1


async def test_a_grown_file_looks_as_a_new_one(backend: SqliteBackend, path: Path, tmp_path: Path) -> None:
    new = SqliteBackend(tmp_path / "new.db")
    for one in (backend, new):
        await one.streams()
        await one.close()

    def schema(path: Path) -> list[str]:
        connection = sqlite3.connect(path)
        rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        return [" ".join(sql.split()).replace("( ", "(").replace(" )", ")").replace(" ,", ",") for (sql,) in rows]

    assert schema(path) == schema(tmp_path / "new.db")


async def test_a_step_that_fails_leaves_the_file_as_it_was(backend: SqliteBackend, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE config (theirs)")
    connection.commit()
    before = list(connection.iterdump())
    with pytest.raises(BackendError, match="config already exists"):
        await backend.streams()
    assert list(connection.iterdump()) == before
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.execute("DROP TABLE config")
    connection.commit()
    connection.close()
    assert (await stream(backend)).length == 4


async def test_several_processes_may_find_an_old_file_at_once(path: Path) -> None:
    backends = [SqliteBackend(path) for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for backend in backends:
            nursery.start_soon(backend.publish, numbered(1))
    assert (await stream(backends[0])).length == 8
    for backend in backends:
        await backend.close()
