"""Schema: the tables of the embedded database, and how its connection is opened and checked.

Every error of SQLite and of the file system becomes a `BackendError` in `translate()`.
"""

from __future__ import annotations

import errno
import sqlite3
from typing import TYPE_CHECKING, Final

from omniactors.errors import BackendBusy, BackendError, BackendRefused, BackendUnusable
from omniactors.streams.sqlite.program import PROGRAM
from omniactors.streams.sqlite.tables import SCHEMA_VERSION, STEPS

if TYPE_CHECKING:
    from pathlib import Path

APPLICATION_ID: Final = 0x6F6D6E69
"""`omni` in ASCII, kept in `PRAGMA application_id`: the database is ours."""

MIN_SQLITE: Final = (3, 35, 0)
"""Upserts, window-free JSON tables and materialised ORDER BY in subqueries are relied on."""

JOURNAL_SIZE_LIMIT: Final = 64 << 20
"""Bytes that an emptied write-ahead log may keep on the disk."""


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
    connection = sqlite3.connect(
        path or ":memory:",
        timeout=wait,
        isolation_level=None,
        cached_statements=256,
        check_same_thread=False,  # one thread at a time: who forks closes it
    )
    try:
        _prepare(connection, path, synchronous)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path | None, synchronous: str) -> None:
    # No mmap and no automatic checkpoint: see WAL-reset bug in docs/delivery.md.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    check_ours(connection, path)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if path is not None and mode != "wal":
        raise BackendUnusable(f"{path} is in a place where SQLite can keep no write-ahead log; put it on a local disk")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT}")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA temp_store = MEMORY")
    _create(connection)
    connection.executescript(PROGRAM)


def check_ours(connection: sqlite3.Connection, path: Path | None) -> None:
    """Raise BackendUnusable for what is not ours, or too new for us."""
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
    """Make the tables, or lead those of an older version to ours; what is stored stays."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    # executescript cannot be part of a transaction that is already open, but may hold one.
    steps = "".join(STEPS[version:])
    connection.executescript(
        f"BEGIN IMMEDIATE; {steps} "
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


_SENTENCES: Final[dict[int, tuple[type[BackendError], str]]] = {
    sqlite3.SQLITE_NOTADB: (BackendUnusable, "is no SQLite database"),
    sqlite3.SQLITE_CANTOPEN: (BackendUnusable, "cannot be opened"),
    sqlite3.SQLITE_READONLY: (BackendUnusable, "may not be written"),
    sqlite3.SQLITE_PERM: (BackendUnusable, "may not be used"),
    sqlite3.SQLITE_AUTH: (BackendUnusable, "may not be used"),
    sqlite3.SQLITE_CORRUPT: (BackendUnusable, "is damaged"),
    sqlite3.SQLITE_FULL: (BackendError, "has no room left on its disk"),
    sqlite3.SQLITE_NOMEM: (BackendError, "found no memory"),
    sqlite3.SQLITE_BUSY: (BackendBusy, "is locked by another program"),
    sqlite3.SQLITE_LOCKED: (BackendBusy, "is locked by another program"),
    sqlite3.SQLITE_IOERR: (BackendError, "could not be read or written"),
    sqlite3.SQLITE_TOOBIG: (BackendRefused, "does not take so much at once"),
    **dict.fromkeys(
        (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE),
        (BackendRefused, "will never take what is to be written"),
    ),
}
"""By the primary code of SQLite's error. What is not here passes, as far as anybody can tell: a wrong statement or
table (SQLITE_ERROR) is about all events alike, and no reason to bury one."""

_PERMANENT: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT)


def translate(error: Exception, path: Path | None) -> BackendError:
    """The error as one sentence of ours that names the file."""
    place = path or "memory://"
    if isinstance(error, BackendError):
        return error
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == 0:  # Python's own refusal, before SQLite saw anything: of a value that has no form there
            code = sqlite3.SQLITE_MISMATCH
        kind, sentence = _SENTENCES.get(code, (BackendError, "refused the operation"))
        return kind(f"{place} {sentence} ({error})")
    if isinstance(error, MemoryError):
        return BackendError(f"{place} found no memory")
    if isinstance(error, OSError):
        kind = BackendUnusable if error.errno in _PERMANENT else BackendError
        return kind(f"{place} cannot be used: {error.strerror or error} ({error.filename or 'its lock file'})")
    return BackendRefused(f"{place} cannot carry out the operation: {type(error).__name__}: {error}")
