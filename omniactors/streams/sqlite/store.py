"""The store: carries out work on the database, and holds the lease of its consumer; driven by one thread.

Knows nothing of trio or of threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from outcome import Error, Value

from omniactors.errors import BackendBusy, BackendError, BackendUnusable
from omniactors.streams.inhand import read_begun
from omniactors.streams.sqlite import operations, scheduling
from omniactors.streams.sqlite.batch import Batch
from omniactors.streams.sqlite.database import Database, lease_folder, transaction
from omniactors.streams.sqlite.diagnosis import diagnose
from omniactors.streams.sqlite.lock import Lease
from omniactors.streams.sqlite.schema import translate
from omniactors.streams.sqlite.steadiness import Steadiness
from omniactors.streams.sqlite.work import Changes, Claim, Fetch, Group, Publish, Read, Release, Scene, Settle, Write

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from outcome import Outcome

    from omniactors.streams.backend import Finding, RuntimeRecord, Settled
    from omniactors.streams.settlement import ResultRecord
    from omniactors.streams.sqlite.database import StoreSettings
    from omniactors.streams.sqlite.forking import Gate

T = TypeVar("T")

Written = Publish | Settle | Release | Claim | Fetch | Write[Any]

_EXIT_WAIT: Final = 5.0
"""Seconds that closing waits for the file lock, whatever the setting."""

_log = logging.getLogger("omniactors.streams.sqlite")


class Store:
    """The database of one backend; opens nothing until it is used, and opens again after `close()`."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._database = Database(settings, self._entered)
        self._consumer: str | None = None
        self._lease: Lease | None = None
        self._standing: dict[str, Callable[[sqlite3.Connection, Scene], object]] = {}
        self._clipped: set[Group] = set()
        self._unreadable: set[str] = set()
        self._steadiness = Steadiness(settings.clock, settings.uptime)

    @property
    def _path(self) -> Path | None:
        return self._database.path

    @property
    def gate(self) -> Gate:
        """Held while the store is at work."""
        return self._database.gate

    @property
    def is_serving(self) -> bool:
        """True between `register` and `unregister`."""
        return self._consumer is not None

    # -- work -----------------------------------------------------------------------------------

    def write(self, works: Sequence[Written], position: int) -> tuple[list[Outcome[Any]], Changes]:
        """Carry out writing work in one transaction; when that fails, each half in one of its own.

        The outcomes are in the order of the works; errors are BackendError or a subclass.
        `position` is what a fetch hands out.
        """
        try:
            with self._database.locked() as connection:
                was_set = self._steadiness.has_changed() and self._steadiness.keep(connection)
                outcomes, changes = self._transact(connection, works, position)
                changes.anything = changes.anything or was_set
                self._database.confirm()
                self._database.checkpoint_at_times(connection)
        except Exception as error:  # noqa: BLE001 -- whatever one operation raises, the others of its batch go on
            failure = translate(error, self._path)
            # What keeps the whole store from being written is found once, and told to all that wait; and what may
            # have been written is not written again.
            if isinstance(failure, BackendBusy | BackendUnusable) or not failure.outcome_known:
                return [Error(failure) for _ in works], Changes()
            if len(works) > 1:
                return self._write_halves(works, position)
            return self._write_alone(works[0], failure, position)
        return outcomes, changes

    def _write_halves(self, works: Sequence[Written], position: int) -> tuple[list[Outcome[Any]], Changes]:
        middle = len(works) // 2
        first, changes = self.write(works[:middle], position)
        second, changed = self.write(works[middle:], position)
        changes.add(changed)
        return first + second, changes

    def _write_alone(self, work: Written, failure: BackendError, position: int) -> tuple[list[Outcome[Any]], Changes]:
        """The end of work that failed by itself; settlements stand together only because they were ready together."""
        if not isinstance(work, Settle):
            return [Error(failure)], Changes()
        middle = len(work.settlements) // 2
        if middle == 0:
            return [Value([failure])], Changes()
        halves = [Settle(work.settlements[:middle]), Settle(work.settlements[middle:])]
        outcomes, changes = self._write_halves(halves, position)
        settled: list[Settled] = []
        for half, outcome in zip(halves, outcomes, strict=True):
            match outcome:
                case Value(answers):
                    settled += answers
                case Error(error):
                    settled += [cast("BackendError", error)] * len(half.settlements)
        return [Value(settled)], changes

    def _transact(
        self, connection: sqlite3.Connection, works: Sequence[Written], position: int
    ) -> tuple[list[Outcome[Any]], Changes]:
        scene = self._scene()
        batch = Batch(connection, scene, position)
        with transaction(connection):
            answers: dict[int, Outcome[Any]] = {}
            for place, work in enumerate(works):
                if isinstance(work, Write):
                    answers[place] = Value(work.operation(connection, scene))
                    batch.changes.add(work.changes)
                    if work.standing is not None:
                        self._standing[work.standing] = work.operation
            merged = [(place, work) for place, work in enumerate(works) if not isinstance(work, Write)]
            if merged:
                outcomes = batch.run([work for _, work in merged])
                answers |= {place: outcome for (place, _), outcome in zip(merged, outcomes, strict=True)}
        self._unclip(batch)
        return [answers[place] for place in range(len(works))], batch.changes

    def _unclip(self, batch: Batch) -> None:
        """Tell those whom their limit kept from taking more that there is room."""
        if self._clipped or batch.clipped:
            clipped = self._clipped | batch.clipped
            batch.changes.topics |= {topic for topic, _ in clipped & batch.freed}
            self._clipped = clipped - batch.freed

    def read(self, work: Read[T]) -> Outcome[T]:
        """Carry out reading work; errors are BackendError or a subclass."""
        return self._guarded(work.operation)

    def results(self, tasks: Iterable[str]) -> Outcome[dict[str, list[ResultRecord]]]:
        """The unexpired results of all these tasks, read at once."""
        return self._guarded(lambda connection, scene: operations.read_results(connection, tasks, scene))

    def _guarded(self, operation: Callable[[sqlite3.Connection, Scene], T]) -> Outcome[T]:
        try:
            return Value(operation(self._database.connected(), self._scene()))
        except Exception as error:  # noqa: BLE001 -- as in `write`
            return Error(translate(error, self._path))

    def snapshot(self) -> Outcome[sqlite3.Connection]:
        """A connection that reads what is there now, for another thread."""
        return self._guarded(lambda *_: self._database.snapshot())

    def changed_elsewhere(self) -> bool:
        """True when another connection has committed since the last call."""
        outcome = self._guarded(lambda *_: self._database.changed_elsewhere())
        return isinstance(outcome, Value) and outcome.value

    # -- being a consumer -----------------------------------------------------------------------

    def register(self) -> Outcome[str]:
        """Become a consumer; the answer is its id."""
        if self._consumer is not None:
            return Error(BackendError("this backend serves already"))
        self._consumer = f"{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._sweep(self._database.connected())
            with self._database.locked() as connection:
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
            self._lease = Lease.take(lease_folder(self._path), self._consumer)
            try:
                self._lease.hold(self._settings.in_hand)
            except OSError as error:
                _log.warning("what is in hand is not noted, so a crash counts for all that is held: %s", error)
        with transaction(connection):
            operations.add_consumer(connection, self._consumer, self._scene())
            for operation in self._standing.values():
                operation(connection, self._scene())

    def _entered(self, connection: sqlite3.Connection) -> None:
        """Enter the consumer in a new file that took the place of one where it was entered."""
        if self._lease is not None and self._consumer not in operations.read_consumer_ids(connection):
            self._enter(connection)

    def unregister(self) -> Outcome[bool]:
        """Give back what this consumer holds, and be none any more; True when it was one.

        If the database cannot be written the lease ends all the same, and others take the work over.
        """
        consumer = self._consumer
        if consumer is None:
            return Value(value=False)
        culprits = read_begun(self._settings.in_hand.read(), only="culprits") or frozenset()
        try:
            with (
                self._database.locked(min(_EXIT_WAIT, self._settings.lock_wait)) as connection,
                transaction(connection),
            ):
                operations.remove_consumer(connection, consumer, culprits, now=self._scene().now)
        except Exception as error:  # noqa: BLE001 -- as in `write`
            _log.warning(
                "consumer %s left its work for others to take over: %s", consumer, translate(error, self._path)
            )
            if self._lease is not None:
                self._lease.close()  # its file tells what had begun
                self._lease = None
        self._consumer = None
        self._standing.clear()
        self._forget_lease()
        return Value(value=True)

    def _forget_lease(self) -> None:
        self._settings.in_hand.detach()
        if self._lease is not None:
            self._lease.drop()
        self._lease = None

    def runtimes(self) -> Outcome[list[RuntimeRecord]]:
        """The consumers that are alive."""

        def alive(connection: sqlite3.Connection, _: Scene) -> list[RuntimeRecord]:
            return [record for record in operations.read_consumers(connection) if self._is_alive(record.consumer)]

        return self._guarded(alive)

    def _seize_dead(self, consumers: Iterable[str]) -> dict[str, Lease | None]:
        """Those of `consumers` that are dead, with their lease if there is one. Each is judged by itself."""
        dead: dict[str, Lease | None] = {}
        for consumer in consumers:
            if self._path is None or consumer == self._consumer:
                continue
            try:
                lease = Lease.seize(lease_folder(self._path), consumer)
            except FileNotFoundError:
                dead[consumer] = None
            except OSError as error:
                self._tell_once(consumer, error)
            else:
                if lease is not None:
                    dead[consumer] = lease
        return dead

    def _tell_once(self, consumer: str, error: OSError) -> None:
        """A lease that cannot be looked at counts as one of a living process."""
        if consumer not in self._unreadable:
            self._unreadable.add(consumer)
            _log.warning(
                "whether consumer %s lives cannot be told, so its work is left alone: %s (%s); "
                "all processes of a store run as one user, or as a group that may write in its folder",
                consumer,
                error.strerror,
                error.filename,
            )

    def _sweep(self, connection: sqlite3.Connection) -> None:
        """Remove lease files of consumers that died before they were entered, or after they were removed."""
        if self._path is None:
            return
        entered = set(operations.read_consumer_ids(connection))
        with contextlib.suppress(FileNotFoundError):
            left = {file.name for file in lease_folder(self._path).iterdir()} - entered
            for lease in self._seize_dead(left).values():
                if lease is not None:
                    lease.drop()

    def maintain(self) -> bool:
        """Take over from dead consumers, make visible what is due, remove some of what has expired.

        True when there is something to fetch.
        """
        outcome = self._guarded(self._clean)
        match outcome:
            case Value(freed):
                return bool(freed)
            case Error(error):
                _log.warning("maintenance was put off: %s", error)
        return False

    def _clean(self, connection: sqlite3.Connection, scene: Scene) -> bool:
        has_jumped = self._steadiness.has_slept()
        if self._steadiness.has_changed():
            with self._database.locked() as locked:
                has_jumped = self._steadiness.keep(locked) or has_jumped
        dead = self._seize_dead(operations.read_consumer_ids(connection))
        topics = scheduling.due_topics(connection, scene.now)
        try:
            if dead or topics or operations.has_expired(connection, scene):
                self._bury(dead, topics, scene)
            for lease in dead.values():
                if lease is not None:
                    lease.drop()
        finally:
            # One that could not be taken over keeps its file, with what it had in hand, for the next round.
            for lease in dead.values():
                if lease is not None:
                    lease.close()
        if operations.is_loose(connection):
            with self._database.locked() as locked:
                operations.shrink(locked)
        return bool(dead or topics or has_jumped)

    def _bury(self, dead: Mapping[str, Lease | None], topics: Iterable[str], scene: Scene) -> None:
        with self._database.locked() as connection, transaction(connection):
            for consumer, lease in dead.items():
                operations.remove_consumer(
                    connection, consumer, None if lease is None else lease.begun(), now=scene.now
                )
            scheduling.promote(connection, topics, scene.now)
            operations.remove_expired(connection, scene)

    # -- the rest -------------------------------------------------------------------------------

    def diagnose(self) -> Outcome[list[Finding]]:
        """Check the store; a store that cannot be used is a finding."""
        return Value(diagnose(self._settings, self._database, self._is_alive))

    def _is_alive(self, consumer: str) -> bool:
        dead = self._seize_dead([consumer])
        for lease in dead.values():
            if lease is not None:
                lease.close()
        return not dead

    def close(self) -> None:
        """Be no consumer any more, copy the write-ahead log into the database, and close it."""
        self.unregister()
        self._database.close(_EXIT_WAIT)

    def _scene(self) -> Scene:
        settings = self._settings
        return Scene(settings.clock(), self._consumer, settings.dedupe_window, settings.stream_limit)
