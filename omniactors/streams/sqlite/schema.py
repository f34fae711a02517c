"""Schema: the tables of the embedded database, and how its connection is opened and checked.

Every error of SQLite and of the file system becomes a `BackendError` in `translate()`.
"""

from __future__ import annotations

import errno
import sqlite3
from typing import TYPE_CHECKING, Final

from omniactors.errors import BackendBusy, BackendError, BackendUnusable

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA_VERSION: Final = 1
"""Kept in `PRAGMA user_version`; a database with a higher one was written by a newer omniactors."""

APPLICATION_ID: Final = 0x6F6D6E69
"""`omni` in ASCII, kept in `PRAGMA application_id`: the database is ours."""

MIN_SQLITE: Final = (3, 35, 0)
"""Upserts, window-free JSON tables and materialised ORDER BY in subqueries are relied on."""

JOURNAL_SIZE_LIMIT: Final = 64 << 20
"""Bytes that an emptied write-ahead log may keep on the disk."""

TABLES: Final = """
CREATE TABLE clock (last_id INTEGER NOT NULL);
INSERT INTO clock VALUES (0);

CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    body NOT NULL
);
CREATE INDEX entry_topic ON entry (topic, id);

CREATE TABLE grp (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    agent TEXT NOT NULL,
    cursor INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, agent)
);

CREATE TABLE pending (
    grp INTEGER NOT NULL,
    entry INTEGER NOT NULL,
    consumer TEXT,
    attempts INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    due REAL NOT NULL,
    PRIMARY KEY (grp, entry)
) WITHOUT ROWID;
CREATE INDEX pending_entry ON pending (entry);
CREATE INDEX pending_due ON pending (grp, due, entry) WHERE consumer IS NULL;

CREATE TABLE dead (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    agent TEXT NOT NULL,
    entry INTEGER NOT NULL,
    reason TEXT NOT NULL,
    error_type TEXT NOT NULL,
    error TEXT NOT NULL,
    traceback TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    failed_at REAL NOT NULL,
    body NOT NULL
);
CREATE INDEX dead_topic ON dead (topic, id);

CREATE TABLE result (
    id INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL,
    agent TEXT NOT NULL,
    status TEXT NOT NULL,
    processed_at REAL NOT NULL,
    expires REAL NOT NULL,
    record TEXT NOT NULL,
    UNIQUE (task_id, agent)
);
CREATE INDEX result_expires ON result (expires);

CREATE TABLE dedupe (
    topic TEXT NOT NULL,
    task_id TEXT NOT NULL,
    entry INTEGER NOT NULL,
    expires REAL NOT NULL,
    PRIMARY KEY (topic, task_id)
) WITHOUT ROWID;
CREATE INDEX dedupe_expires ON dedupe (expires);

CREATE TABLE agent (
    topic TEXT NOT NULL,
    name TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (topic, name)
) WITHOUT ROWID;

CREATE TABLE consumer (
    id TEXT PRIMARY KEY,
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    started_at REAL NOT NULL,
    gateway TEXT
) WITHOUT ROWID;
"""

PROGRAM: Final = """
CREATE TEMP VIEW program (now, last_id, entries, remembered, dead, done, placed, cursors, results)
AS SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL;

CREATE TEMP TRIGGER run_program INSTEAD OF INSERT ON program BEGIN
    INSERT INTO entry (id, topic, body)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
        FROM json_each(NEW.entries);

    UPDATE clock SET last_id = NEW.last_id WHERE last_id < NEW.last_id;

    INSERT OR REPLACE INTO dedupe (topic, task_id, entry, expires)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
               json_extract(value, '$[3]')
        FROM json_each(NEW.remembered);

    INSERT INTO dead (id, entry, topic, agent, reason, error_type, error, traceback, attempts, failed_at, body)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
               json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
               json_extract(value, '$[6]'), json_extract(value, '$[7]'), json_extract(value, '$[8]'),
               NEW.now, entry.body
        FROM json_each(NEW.dead) CROSS JOIN entry ON entry.id = json_extract(value, '$[1]');

    DELETE FROM pending WHERE (grp, entry) IN
        (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(NEW.done));

    INSERT INTO pending (grp, entry, consumer, attempts, crashes, due)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
               json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]')
        FROM json_each(NEW.placed) WHERE true
        ON CONFLICT (grp, entry) DO UPDATE SET consumer = excluded.consumer, attempts = excluded.attempts,
            crashes = excluded.crashes, due = excluded.due;

    UPDATE grp SET cursor = (SELECT json_extract(value, '$[1]') FROM json_each(NEW.cursors)
                             WHERE json_extract(value, '$[0]') = grp.id)
        WHERE id IN (SELECT json_extract(value, '$[0]') FROM json_each(NEW.cursors));

    DELETE FROM entry
        WHERE id IN (SELECT json_extract(value, '$[1]') FROM json_each(NEW.done))
        AND NOT EXISTS (SELECT 1 FROM pending WHERE pending.entry = entry.id)
        AND NOT EXISTS (SELECT 1 FROM grp WHERE grp.topic = entry.topic AND grp.cursor < entry.id);

    INSERT INTO result (task_id, agent, status, processed_at, expires, record)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
               json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]')
        FROM json_each(NEW.results) WHERE true
        ON CONFLICT (task_id, agent) DO UPDATE SET status = excluded.status, processed_at = excluded.processed_at,
            expires = excluded.expires, record = excluded.record
        WHERE excluded.status = 'success' OR result.status <> 'success' OR result.expires <= NEW.now;
END;
"""
"""What a batch writes, as one statement. Each statement costs several hand-overs of the interpreter
lock, and beside a busy trio thread each of those can take 5 ms; a trigger's statements cost none."""


def connect(path: Path | None, *, synchronous: str, wait: float) -> sqlite3.Connection:
    """Open the database, made first where there is none; to be called under the file lock.

    Raises BackendUnusable when it is no database, another program's, or a newer omniactors';
    sqlite3.Error otherwise.
    """
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        wanted = ".".join(map(str, MIN_SQLITE))
        raise BackendUnusable(f"SQLite {wanted} or newer is needed, and this Python has {sqlite3.sqlite_version}")
    if path is not None and path.is_dir():
        raise BackendUnusable(f"{path} is a folder, and the database is a file")
    connection = sqlite3.connect(path or ":memory:", timeout=wait, isolation_level=None, cached_statements=256)
    try:
        _prepare(connection, path, synchronous)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path | None, synchronous: str) -> None:
    # No mmap and no automatic checkpoint: see WAL-reset bug in docs/delivery.md.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    _check(connection, path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT}")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA temp_store = MEMORY")
    _create(connection)
    connection.executescript(PROGRAM)


def _check(connection: sqlite3.Connection, path: Path | None) -> None:
    """Refuse what is not ours."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and application != APPLICATION_ID:
        raise BackendUnusable(f"{path} is a SQLite database of another program")
    if version > SCHEMA_VERSION:
        raise BackendUnusable(
            f"{path} was written by a newer omniactors (schema {version}; this one knows {SCHEMA_VERSION})"
        )


def _create(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    # executescript cannot be part of a transaction that is already open, but may hold one.
    connection.executescript(
        f"BEGIN IMMEDIATE; {TABLES}"
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


_SENTENCES: Final[dict[int, tuple[type[BackendError], str]]] = {
    sqlite3.SQLITE_NOTADB: (BackendUnusable, "is no SQLite database"),
    sqlite3.SQLITE_CANTOPEN: (BackendUnusable, "cannot be opened"),
    sqlite3.SQLITE_READONLY: (BackendUnusable, "may not be written"),
    sqlite3.SQLITE_PERM: (BackendUnusable, "may not be used"),
    sqlite3.SQLITE_CORRUPT: (BackendUnusable, "is damaged"),
    sqlite3.SQLITE_FULL: (BackendError, "has no room left on its disk"),
    sqlite3.SQLITE_BUSY: (BackendBusy, "is locked by another program"),
    sqlite3.SQLITE_LOCKED: (BackendBusy, "is locked by another program"),
    sqlite3.SQLITE_IOERR: (BackendError, "could not be read or written"),
}

_PERMANENT: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT)


def translate(error: Exception, path: Path | None) -> BackendError:
    """The error as one sentence of ours that names the file."""
    place = path or "memory://"
    if isinstance(error, BackendError):
        return error
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        kind, sentence = _SENTENCES.get(code, (BackendError, "refused the operation"))
        return kind(f"{place} {sentence} ({error})")
    if isinstance(error, OSError):
        kind = BackendUnusable if error.errno in _PERMANENT else BackendError
        return kind(f"{place} cannot be used: {error.strerror} ({error.filename or 'its lock file'})")
    return BackendError(f"{place} cannot carry out the operation: {type(error).__name__}: {error}")
