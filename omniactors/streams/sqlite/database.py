"""The database: one connection and the file lock, under which all writing, opening and closing happens.

Knows nothing of what is written. Reading needs no lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from omniactors.errors import BackendBusy, BackendError, BackendRefused, BackendUnusable
from omniactors.streams.sqlite.forking import Gate
from omniactors.streams.sqlite.guard import Guard, index_path, is_guarded, log_inode, log_path
from omniactors.streams.sqlite.lock import FileLock
from omniactors.streams.sqlite.places import file_system, network_warning, refuse_other_names
from omniactors.streams.sqlite.schema import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from omniactors.streams.inhand import InHand
    from omniactors.streams.sqlite.steadiness import Uptime

_CHECKPOINT_COMMITS: Final = 256
"""Commits after which the write-ahead log is copied into the database."""

_FORK_WAIT: Final = 1.0
"""Seconds that a fork waits for the file lock, to close the connection under it."""

_CHANGING: Final = "changing"
"""The note in the lock file while a checkpoint may change the file; else the note is how the file looks since then.

Behind it stands which file the log is, by its inode: who opens the database knows by that whether it is still there."""

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
    in_hand: InHand
    uptime: Uptime | None


class Database:
    """Opened on first use, and again after `close()`, or when its file was replaced.

    `on_open` is called under the lock with each new connection.
    """

    def __init__(self, settings: StoreSettings, on_open: Callable[[sqlite3.Connection], None]) -> None:
        self._settings = settings
        self.path = settings.path
        """The file itself: links are followed when it is opened, so that locks and leases have one name."""
        self._on_open = on_open
        self.gate = Gate(self._let_go)
        self._lock: FileLock | None = None
        self._connection: sqlite3.Connection | None = None
        self._guard: Guard | None = None
        self._was_open = False
        self._let_go_of: os.stat_result | None = None
        """The file that was closed for a fork, and is to be opened again as if nothing had happened."""
        self._data_version = -1
        self._commits = 0

    def connected(self) -> sqlite3.Connection:
        """The connection, for reading; raises BackendError, sqlite3.Error or OSError."""
        if self._connection is None or (self._guard is not None and not self._guard.is_intact()):
            with self.locked() as connection:
                return connection
        return self._opened()

    @contextlib.contextmanager
    def locked(self, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        """The connection, while no other process writes; raises BackendBusy."""
        if self._settings.path is None:
            yield self._opened()
            return
        if self._connection is None and self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._lock is None:
            self.path = Path(os.path.realpath(self._settings.path))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(lock_path(self.path), self.gate.ajar())
        lock, wait = self._lock, self._settings.lock_wait if wait is None else wait
        try:
            lock.acquire(wait)
        except FileNotFoundError:  # the folder was removed
            lock.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(wait)
        try:
            if not self._keep_up():
                _log.error(
                    "%s or its log was removed, replaced or cut while it was in use; what was in it is lost", self.path
                )
            yield self._opened()
        finally:
            lock.release()

    def confirm(self) -> None:
        """Raise BackendError unless what was just committed is where others find it; to be called under the lock."""
        if not self._keep_up():
            raise BackendError(
                f"{self.path} was removed or replaced while it was written to: whether it holds that is not known",
                outcome_known=False,
            )

    def _keep_up(self) -> bool:
        """Let go of files that are not those at the path any more; False when commits were lost with them."""
        guard, path = self._guard, self.path
        if guard is None or path is None:
            return True
        if guard.is_intact():
            if not guard.is_cut():
                return True
            guard.drop_log()
            with contextlib.suppress(OSError):
                self._note(self._noted()[0], 0)
            self._disconnect()
            return False
        look, newest = self._noted()
        keeps = guard.keeps_commits(newest)
        if keeps:
            if newest == guard.log_inode:
                with contextlib.suppress(OSError):
                    self._note(look, log_inode(path))  # which was put back
            _log.warning("files of %s were removed while it was in use; nothing is lost", self.path)
        self._disconnect()
        return keeps

    def changed_elsewhere(self) -> bool:
        """True when another connection has committed since the last call."""
        if self.path is None:
            return False
        connection = self.connected()  # first: it may forget the version
        before, self._data_version = self._data_version, _data_version(connection)
        return before != self._data_version

    def checkpoint_at_times(self, connection: sqlite3.Connection) -> None:
        """Count a commit, and now and then copy the log into the database; to be called under the lock."""
        self._commits += 1
        if self._commits >= _CHECKPOINT_COMMITS and self.path is not None:
            self._commits = 0
            # The batch is committed whatever becomes of this.
            with contextlib.suppress(sqlite3.Error, OSError), self._checkpoint(self.path):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self, wait: float) -> None:
        """Copy the write-ahead log into the database, and close it; waits so many seconds for the lock."""
        if self._connection is not None and (self._guard is None or self._guard.is_there()):
            with contextlib.suppress(BackendError, sqlite3.Error, OSError):
                self._close_orderly(wait)
        self._disconnect()
        if self._lock is not None:
            self._lock.close()

    def _let_go(self) -> None:
        """Close the connection before a fork; what is in memory stays with the parent."""
        if self._connection is None or self.path is None:
            return
        lock = FileLock(lock_path(self.path))
        # Who holds it for longer has the database open, so that we are not the last one, with something to finish.
        with contextlib.suppress(BackendError, OSError):
            lock.acquire(_FORK_WAIT)
        if self._guard is None or self._guard.is_intact():
            self._let_go_of = self.path.stat()
        with contextlib.suppress(sqlite3.Error):
            self._disconnect()
        lock.close()

    def _close_orderly(self, wait: float) -> None:
        with self.locked(wait) as connection, self._checkpoint(self.path):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if self._guard is not None:
                self._guard.unlock()
            self._disconnect()  # the last one takes the log away, and the note says so next

    def snapshot(self) -> sqlite3.Connection:
        """A connection that reads what is there now, and nothing later, for another thread, which closes it."""
        with self.locked():
            if self.path is None:
                raise BackendRefused("memory:// ends with its process, and has nothing to back up")
            reader = sqlite3.connect(
                f"{self.path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
            reader.execute("BEGIN")
            reader.execute("SELECT last_id FROM clock").fetchone()
            return reader

    @contextlib.contextmanager
    def _checkpoint(self, path: Path | None) -> Iterator[None]:
        """What is done inside may change the file itself, as only checkpoints do."""
        if path is not None:
            self._note(_CHANGING, self._log_in_use(path))
        yield
        if path is not None:
            self._note_checkpoint(path)

    def _note_checkpoint(self, path: Path) -> None:
        """Note, for whoever opens it after a crash, which file the log belongs to."""
        if self._lock is not None:
            if self._guard is not None:
                self._guard.sync()  # the time of its last change too
            # Without room for a note there is none, and nothing is refused for it.
            with contextlib.suppress(OSError):
                self._note(_look_of(path), self._log_in_use(path))

    def _note(self, look: str, log: int) -> None:
        if self._lock is not None:
            self._lock.write_note(f"{look} {log}")

    def _log_in_use(self, path: Path) -> int:
        return log_inode(path) if self._guard is None else self._guard.log_inode

    def _noted(self) -> tuple[str, int]:
        """How the file looked after the last checkpoint, or "", and the inode of the newest log, or 0."""
        look, _, inode = ("" if self._lock is None else self._lock.read_note()).rpartition(" ")
        return (look, int(inode)) if look and inode.isdecimal() else ("", 0)

    def _refuse_strange_log(self, path: Path) -> None:
        """Raise BackendUnusable when the file was replaced, and the log of the one before still stands beside it.

        Raises BackendBusy when the log was deleted under another process, which still has it, and what is in it.
        """
        look, newest = self._noted()
        log = log_path(path)
        if newest not in {0, log_inode(path)} and is_guarded(path):
            raise BackendBusy(
                f"{log} was deleted or replaced while another process has {path.name} open; it puts the log back "
                "when it works with it next, or ends"
            )
        if look in {"", _CHANGING} or not path.exists() or not log.exists() or not log.stat().st_size:
            return
        if _look_of(path) != look:
            raise BackendUnusable(
                f"{log} belongs to another file than the {path.name} beside it, which was replaced: opened together "
                f"they would be damaged. Move {log.name} and {index_path(path).name} away; if it was not replaced, "
                f"but copied together with its log, delete {lock_path(path).name} instead"
            )

    def _disconnect(self) -> None:
        """Close the connection. Under the guard's locks SQLite leaves the files alone, whoever has replaced them."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        if self._guard is not None:
            self._guard.release()
        self._guard = None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._open()
            except BaseException:  # half open is not open
                self._disconnect()
                raise
        elif self._connection.in_transaction:  # its end has failed
            self._connection.execute("ROLLBACK")
        return cast("sqlite3.Connection", self._connection)

    def _open(self) -> None:
        settings, path = self._settings, self.path
        if path is not None:
            refuse_other_names(path)
            self._refuse_strange_log(path)
        connection = self._connection = connect(path, synchronous=settings.synchronous, wait=settings.lock_wait)
        # In a file that took the place of another everything may be different.
        self._data_version = -1 if self._was_open else _data_version(connection)
        self._was_open = True
        if path is not None:
            self._guard_it(path)
        let_go_of, self._let_go_of = self._let_go_of, None
        if let_go_of is None or path is None or not os.path.samestat(let_go_of, path.stat()):
            self._on_open(connection)

    def _guard_it(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._guard = Guard.hold(path)
        if self._guard is None or not self._guard.is_intact():
            raise BackendBusy(f"{path} was replaced while it was opened; nothing was written")
        self._note_checkpoint(path)
        if (warning := network_warning(path, file_system(path))) is not None:
            _log.warning("%s", warning)


def _look_of(path: Path) -> str:
    """What is another when the file is another: in between only checkpoints change it."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


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
