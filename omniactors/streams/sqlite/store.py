"""The store: the connection, its locks and its lease, driven by one thread.

Knows nothing of trio or of threads. Every write and checkpoint, and opening and closing the
connection, happen under the file lock; reads need none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from outcome import Error, Value

from omniactors.errors import BackendBusy, BackendError
from omniactors.streams.sqlite import operations
from omniactors.streams.sqlite.batch import Batch
from omniactors.streams.sqlite.lock import FileLock, Lease
from omniactors.streams.sqlite.schema import connect, translate
from omniactors.streams.sqlite.work import Changes, Fetch, Publish, Read, Release, Scene, Settle, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from outcome import Outcome

    from omniactors.streams.backend import RuntimeRecord
    from omniactors.streams.settlement import ResultRecord

T = TypeVar("T")

Written = Publish | Settle | Release | Fetch | Write[Any]

_CHECKPOINT_COMMITS: Final = 256
"""Commits after which the write-ahead log is copied into the database."""

_PLACE_CHECK: Final = 1.0
"""Seconds between looks whether the file is still the one that was opened."""

_EXIT_WAIT: Final = 5.0
"""Seconds that closing waits for the file lock, whatever the setting."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreSettings:
    """Where the store is (None: in memory) and how it works; times in seconds."""

    path: Path | None
    synchronous: str
    dedupe_window: float
    lock_wait: float


class Store:
    """The database of one backend; opens nothing until it is used, and opens again after `close()`."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._path = settings.path
        self._lock: FileLock | None = None
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._looked_at = 0.0
        self._data_version = -1
        self._commits = 0
        self._consumer: str | None = None
        self._lease: Lease | None = None

    @property
    def is_serving(self) -> bool:
        """True between `register` and `unregister`."""
        return self._consumer is not None

    # -- work -----------------------------------------------------------------------------------

    def write(self, works: Sequence[Written], position: int) -> tuple[list[Outcome[Any]], Changes]:
        """Carry out writing work in one transaction; when that fails, each in one of its own.

        The outcomes are in the order of the works; errors are BackendError or a subclass.
        `position` is what a fetch hands out.
        """
        try:
            with self._locked() as connection:
                values, changes = self._transact(connection, works, position)
                self._checkpoint_at_times(connection)
        except Exception as error:  # noqa: BLE001 -- whatever one operation raises, the others of its batch go on
            failure = translate(error, self._path)
            if len(works) == 1 or isinstance(failure, BackendBusy):
                return [Error(failure) for _ in works], Changes()
            return self._write_singly(works, position)
        return [Value(value) for value in values], changes

    def _write_singly(self, works: Sequence[Written], position: int) -> tuple[list[Outcome[Any]], Changes]:
        outcomes: list[Outcome[Any]] = []
        changes = Changes()
        for work in works:
            (outcome,), changed = self.write([work], position)
            outcomes.append(outcome)
            changes.add(changed)
        return outcomes, changes

    def _transact(
        self, connection: sqlite3.Connection, works: Sequence[Written], position: int
    ) -> tuple[list[Any], Changes]:
        scene = self._scene()
        batch = Batch(connection, scene, position)
        with _transaction(connection):
            answers: dict[int, Any] = {}
            for place, work in enumerate(works):
                if isinstance(work, Write):
                    answers[place] = work.operation(connection, scene)
                    batch.changes.topics |= work.topics
            merged = [(place, work) for place, work in enumerate(works) if not isinstance(work, Write)]
            if merged:
                values = batch.run([work for _, work in merged])
                answers |= {place: value for (place, _), value in zip(merged, values, strict=True)}
        return [answers[place] for place in range(len(works))], batch.changes

    def read(self, work: Read[T]) -> Outcome[T]:
        """Carry out reading work; errors are BackendError or a subclass."""
        return self._guarded(work.operation)

    def results(self, tasks: Iterable[str]) -> Outcome[dict[str, list[ResultRecord]]]:
        """The unexpired results of all these tasks, read at once."""
        return self._guarded(lambda connection, scene: operations.read_results(connection, tasks, scene))

    def _guarded(self, operation: Callable[[sqlite3.Connection, Scene], T]) -> Outcome[T]:
        try:
            return Value(operation(self._connected(), self._scene()))
        except Exception as error:  # noqa: BLE001 -- as in `write`
            return Error(translate(error, self._path))

    def changed_elsewhere(self) -> bool:
        """True when another connection has committed since the last call."""
        if self._path is None:
            return False
        outcome = self._guarded(lambda connection, _: _data_version(connection))
        match outcome:
            case Value(version):
                before, self._data_version = self._data_version, version
                return before != self._data_version
        return False

    # -- being a consumer -----------------------------------------------------------------------

    def register(self) -> Outcome[str]:
        """Become a consumer; the answer is its id."""
        if self._consumer is not None:
            return Error(BackendError("this backend serves already"))
        self._consumer = f"{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._sweep(self._connected())
            with self._locked() as connection:
                self._enter(connection)
        except Exception as error:  # noqa: BLE001 -- as in `write`
            self._forget_lease()
            self._consumer = None
            return Error(translate(error, self._path))
        return Value(self._consumer)

    def _enter(self, connection: sqlite3.Connection) -> None:
        """Take the lease, then enter the consumer in the database: in this order, see `Lease`."""
        if self._consumer is None:
            return
        self._forget_lease()
        if self._path is not None:
            self._lease = Lease.take(_lease_folder(self._path), self._consumer)
        with _transaction(connection):
            operations.add_consumer(connection, self._consumer, self._scene())

    def unregister(self) -> Outcome[bool]:
        """Give back what this consumer holds, and be none any more; True when it was one.

        If the database cannot be written the lease ends all the same, and others take the work over.
        """
        consumer = self._consumer
        if consumer is None:
            return Value(value=False)
        try:
            with self._locked(min(_EXIT_WAIT, self._settings.lock_wait)) as connection, _transaction(connection):
                operations.remove_consumer(connection, consumer, crashes=0)
        except Exception as error:  # noqa: BLE001 -- as in `write`
            _log.warning(
                "consumer %s left its work for others to take over: %s", consumer, translate(error, self._path)
            )
        self._consumer = None
        self._forget_lease()
        return Value(value=True)

    def _forget_lease(self) -> None:
        if self._lease is not None:
            self._lease.drop()
        self._lease = None

    def runtimes(self) -> Outcome[list[RuntimeRecord]]:
        """The consumers that are alive."""

        def alive(connection: sqlite3.Connection, _: Scene) -> list[RuntimeRecord]:
            records = operations.read_consumers(connection)
            dead = self._seize_dead(record.consumer for record in records)
            for lease in dead.values():
                if lease is not None:
                    lease.close()
            return [record for record in records if record.consumer not in dead]

        return self._guarded(alive)

    def _seize_dead(self, consumers: Iterable[str]) -> dict[str, Lease | None]:
        """Those of `consumers` that are dead, with their lease if there is one."""
        dead: dict[str, Lease | None] = {}
        for consumer in consumers:
            if self._path is None or consumer == self._consumer:
                continue
            try:
                lease = Lease.seize(_lease_folder(self._path), consumer)
            except FileNotFoundError:
                dead[consumer] = None
            else:
                if lease is not None:
                    dead[consumer] = lease
        return dead

    def _sweep(self, connection: sqlite3.Connection) -> None:
        """Remove lease files of consumers that died before they were entered, or after they were removed."""
        if self._path is None:
            return
        entered = {record.consumer for record in operations.read_consumers(connection)}
        with contextlib.suppress(FileNotFoundError):
            left = {file.name for file in _lease_folder(self._path).iterdir()} - entered
            for lease in self._seize_dead(left).values():
                if lease is not None:
                    lease.drop()

    def maintain(self) -> bool:
        """Take over from dead consumers and remove some of what has expired; True when work was freed."""
        outcome = self._guarded(self._clean)
        match outcome:
            case Value(freed):
                return bool(freed)
            case Error(error):
                _log.warning("maintenance was put off: %s", error)
        return False

    def _clean(self, connection: sqlite3.Connection, scene: Scene) -> bool:
        dead = self._seize_dead(record.consumer for record in operations.read_consumers(connection))
        try:
            if dead or operations.has_expired(connection, scene):
                self._bury(dead, scene)
        finally:
            for lease in dead.values():
                if lease is not None:
                    lease.drop()
        if operations.is_loose(connection):
            with self._locked() as locked:
                operations.shrink(locked)
        return bool(dead)

    def _bury(self, dead: Iterable[str], scene: Scene) -> None:
        with self._locked() as connection, _transaction(connection):
            for consumer in dead:
                operations.remove_consumer(connection, consumer, crashes=1)
            operations.remove_expired(connection, scene)

    # -- the connection -------------------------------------------------------------------------

    def close(self) -> None:
        """Be no consumer any more, copy the write-ahead log into the database, and close it."""
        self.unregister()
        if self._connection is not None:
            with contextlib.suppress(BackendError, sqlite3.Error, OSError), self._locked(_EXIT_WAIT) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._disconnect()
        self._disconnect()
        if self._lock is not None:
            self._lock.close()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _scene(self) -> Scene:
        return Scene(now=time.time(), consumer=self._consumer, dedupe_window=self._settings.dedupe_window)

    def _connected(self) -> sqlite3.Connection:
        self._look()
        if self._connection is None:
            with self._locked() as connection:
                return connection
        return self._connection

    @contextlib.contextmanager
    def _locked(self, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        """The connection, while no other process writes; raises BackendBusy."""
        self._look()
        if self._path is None:
            yield self._opened()
            return
        if self._lock is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(_beside(self._path, ".lock"))
        self._lock.acquire(self._settings.lock_wait if wait is None else wait)
        try:
            yield self._opened()
        finally:
            self._lock.release()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            settings = self._settings
            self._connection = connect(self._path, synchronous=settings.synchronous, wait=settings.lock_wait)
            # In a file that took the place of another everything may be different.
            replaced = self._inode != 0
            self._data_version = -1 if replaced else _data_version(self._connection)
            if self._path is not None:
                self._inode = self._path.stat().st_ino
            if self._lease is not None:  # this is a new file in the place of one where we were entered
                self._enter(self._connection)
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

    def _checkpoint_at_times(self, connection: sqlite3.Connection) -> None:
        self._commits += 1
        if self._commits >= _CHECKPOINT_COMMITS and self._path is not None:
            self._commits = 0
            # The batch is committed whatever becomes of this.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
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


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _lease_folder(path: Path) -> Path:
    return _beside(path, ".consumers")
