"""The database: one connection and the file lock, under which all writing, opening and closing happens.

Knows nothing of what is written. Reading needs no lock.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from omniactors.errors import BackendError
from omniactors.streams.sqlite.lock import FileLock
from omniactors.streams.sqlite.places import file_system, network_warning
from omniactors.streams.sqlite.schema import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CHECKPOINT_COMMITS: Final = 256
"""Commits after which the write-ahead log is copied into the database."""

_PLACE_CHECK: Final = 1.0
"""Seconds between looks whether the file is still the one that was opened."""

_log = logging.getLogger("omniactors.streams.sqlite")


@dataclass(frozen=True)
class StoreSettings:
    """Where the store is (None: in memory) and how it works; times in seconds."""

    path: Path | None
    synchronous: str
    dedupe_window: float
    lock_wait: float
    stream_limit: int | None
    clock: Callable[[], float]


class Database:
    """Opened on first use, and again after `close()`, or when its file was replaced.

    `on_open` is called under the lock with each new connection.
    """

    def __init__(self, settings: StoreSettings, on_open: Callable[[sqlite3.Connection], None]) -> None:
        self._settings = settings
        self._path = settings.path
        self._on_open = on_open
        self._lock: FileLock | None = None
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._looked_at = 0.0
        self._data_version = -1
        self._commits = 0

    def connected(self) -> sqlite3.Connection:
        """The connection, for reading; raises BackendError, sqlite3.Error or OSError."""
        self._look()
        if self._connection is None:
            with self.locked() as connection:
                return connection
        return self._connection

    @contextlib.contextmanager
    def locked(self, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        """The connection, while no other process writes; raises BackendBusy."""
        self._look()
        if self._path is None:
            yield self._opened()
            return
        if self._lock is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(lock_path(self._path))
        self._lock.acquire(self._settings.lock_wait if wait is None else wait)
        try:
            yield self._opened()
        finally:
            self._lock.release()

    def changed_elsewhere(self) -> bool:
        """True when another connection has committed since the last call."""
        if self._path is None:
            return False
        connection = self.connected()  # first: it may forget the version
        before, self._data_version = self._data_version, _data_version(connection)
        return before != self._data_version

    def checkpoint_at_times(self, connection: sqlite3.Connection) -> None:
        """Count a commit, and now and then copy the log into the database; to be called under the lock."""
        self._commits += 1
        if self._commits >= _CHECKPOINT_COMMITS and self._path is not None:
            self._commits = 0
            # The batch is committed whatever becomes of this.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self, wait: float) -> None:
        """Copy the write-ahead log into the database, and close it; waits so many seconds for the lock."""
        if self._connection is not None:
            with contextlib.suppress(BackendError, sqlite3.Error, OSError), self.locked(wait) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._disconnect()
        self._disconnect()
        if self._lock is not None:
            self._lock.close()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            settings = self._settings
            self._connection = connect(self._path, synchronous=settings.synchronous, wait=settings.lock_wait)
            # In a file that took the place of another everything may be different.
            replaced = self._inode != 0
            self._data_version = -1 if replaced else _data_version(self._connection)
            if self._path is not None:
                self._inode = self._path.stat().st_ino
                if (warning := network_warning(self._path, file_system(self._path))) is not None:
                    _log.warning("%s", warning)
            self._on_open(self._connection)
        return self._connection

    def _look(self) -> None:
        """Notice, once a second, that the file was removed or replaced under us: what we wrote there is gone."""
        now = time.monotonic()
        if self._path is None or self._connection is None or now - self._looked_at < _PLACE_CHECK:
            return
        self._looked_at = now
        try:
            inode = self._path.stat().st_ino
        except OSError:
            inode = 0
        if inode != self._inode:
            _log.error("%s was removed or replaced while it was in use; what was in it is lost", self._path)
            self._disconnect()
            if self._lock is not None:
                self._lock.close()
            self._lock = None


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """What is executed inside is written whole or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors, as that of a full disk, have ended it already
            connection.execute("ROLLBACK")
        raise


def _data_version(connection: sqlite3.Connection) -> int:
    """A number that is another one whenever another connection has committed."""
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)


def lock_path(path: Path) -> Path:
    """The file whose lock says who writes."""
    return path.with_name(path.name + ".lock")


def lease_folder(path: Path) -> Path:
    """The folder with a locked file per live consumer."""
    return path.with_name(path.name + ".consumers")
