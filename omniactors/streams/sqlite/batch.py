"""A batch: all publishes, settlements, releases and the fetch of one transaction, in a few statements.

It reads what it has to know (the newest id, repeats, ownership), decides in plain code, and leaves
a `Program` to be written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from omniactors.errors import BackendError
from omniactors.streams.backend import Fetched, Published
from omniactors.streams.sqlite import taking
from omniactors.streams.sqlite.ids import first_id, read_id, show_id
from omniactors.streams.sqlite.program import DeadEntry, NewResult, Place, Program, Remembered, clean, to_json
from omniactors.streams.sqlite.work import Changes, Fetch, Publish, Release, Scene, Settle, Work

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from omniactors.streams.backend import Want
    from omniactors.streams.settlement import EntryKey, Publication, ResultRecord, Settlement

_STATE: Final = """
SELECT (SELECT last_id FROM clock),
    (SELECT json_group_array(json_array(wanted.key, dedupe.entry))
     FROM json_each(:tasks) AS wanted CROSS JOIN dedupe
     ON dedupe.topic = json_extract(wanted.value, '$[0]') AND dedupe.task_id = json_extract(wanted.value, '$[1]')
     WHERE dedupe.expires > :now),
    (SELECT json_group_array(json_array(wanted.key, pending.grp, pending.entry, pending.attempts, pending.crashes))
     FROM json_each(:keys) AS wanted CROSS JOIN grp
     ON grp.topic = json_extract(wanted.value, '$[0]') AND grp.agent = json_extract(wanted.value, '$[1]')
     CROSS JOIN pending ON pending.grp = grp.id AND pending.entry = json_extract(wanted.value, '$[2]')
     WHERE pending.consumer = :consumer)
"""

Merged = Publish | Settle | Release | Fetch


class _Owned(msgspec.Struct, frozen=True, array_like=True):
    """An entry in our hands; `place` is that of its key among those asked for."""

    place: int
    grp: int
    entry: int
    attempts: int
    crashes: int


_repeats = msgspec.json.Decoder(list[tuple[int, int]])
_owned = msgspec.json.Decoder(list[_Owned])


@dataclass(eq=False)
class Batch:
    """Merged work of one transaction; made anew for each. `position` is what a fetch hands out."""

    connection: sqlite3.Connection
    scene: Scene
    position: int
    changes: Changes = field(default_factory=Changes)
    program: Program = field(default_factory=Program)
    _known: dict[tuple[str, str], int] = field(default_factory=dict)
    _owned: dict[EntryKey, _Owned] = field(default_factory=dict)

    def run(self, works: Sequence[Merged]) -> list[Any]:
        """Carry all of them out; the answers, in their order. After an exception roll back."""
        if any(not isinstance(work, Fetch) for work in works):
            self._read_state(works)
        answers = [self._perform(work) for work in works]
        self.program.run(self.connection, self.scene.now)
        return answers

    def _perform(self, work: Merged) -> object:
        match work:
            case Publish(publications):
                return [self._append(publication) for publication in publications]
            case Settle(settlements):
                return [self._settle(settlement) for settlement in settlements]
            case Release(keys):
                self._release(keys)
                return None
            case Fetch(wants):
                return self._fetch(wants)

    def _read_state(self, works: Sequence[Work[Any]]) -> None:
        tasks = list({task for publication in _publications(works) if (task := _task(publication))})
        keys = list(dict.fromkeys(_keys(works)))
        parameters = {
            "tasks": to_json(tasks),
            "keys": to_json([(clean(key.topic), clean(key.agent), read_id(key.entry_id)) for key in keys]),
            "consumer": self.scene.consumer,
            "now": self.scene.now,
        }
        last_id, repeats, owned = self.connection.execute(_STATE, parameters).fetchone()
        self.program.last_id = last_id
        self._known = {tasks[place]: entry for place, entry in _repeats.decode(repeats)}
        self._owned = {keys[found.place]: found for found in _owned.decode(owned)}

    def _next_id(self) -> int:
        self.program.last_id = first_id(self.program.last_id, self.scene.now)
        return self.program.last_id

    def _append(self, publication: Publication) -> Published:
        task = _task(publication)
        if task is not None and task in self._known:
            return Published(task_id=publication.task_id, entry_id=show_id(self._known[task]), duplicate=True)
        entry = self._next_id()
        topic = clean(publication.topic)
        self.program.append(topic, publication.body, entry)
        self.changes.topics.add(publication.topic)
        if task is not None:
            self._known[task] = entry
            expires = self.scene.now + self.scene.dedupe_window
            self.program.remembered.append(Remembered(topic, task[1], entry, expires))
        return Published(task_id=publication.task_id, entry_id=show_id(entry))

    def _settle(self, settlement: Settlement) -> bool:
        owned = self._owned.pop(settlement.key, None)
        if owned is None:
            return False
        if settlement.retry is not None:
            due = self.scene.now + settlement.retry.after
            self.program.placed.append(Place(owned.grp, owned.entry, None, settlement.retry.attempts, 0, due))
            self.changes.topics.add(settlement.key.topic)
            return True
        self.program.done.append((owned.grp, owned.entry))
        if settlement.dead is not None:
            self._bury(settlement, owned.entry)
        if settlement.result is not None:
            self._store(settlement.result, settlement.result_ttl)
        for publication in settlement.publications:
            self._append(publication)
        return True

    def _bury(self, settlement: Settlement, entry: int) -> None:
        dead, key = settlement.dead, settlement.key
        if dead is None:
            return
        self.program.dead.append(
            DeadEntry(
                id=self._next_id(),
                entry=entry,
                topic=clean(key.topic),
                agent=clean(key.agent),
                reason=dead.reason,
                error_type=clean(dead.error.type),
                error=clean(dead.error.message),
                traceback=clean(dead.error.traceback),
                attempts=dead.attempts,
            )
        )

    def _store(self, record: ResultRecord, ttl: float) -> None:
        if not record.processed_at:
            record = msgspec.structs.replace(record, processed_at=self.scene.now)
        self.changes.tasks.add(record.task_id)
        self.program.results.append(
            NewResult(
                task_id=clean(record.task_id),
                agent=clean(record.agent),
                status=record.status,
                processed_at=record.processed_at,
                expires=self.scene.now + ttl,
                record=to_json(record),
            )
        )

    def _release(self, keys: Sequence[EntryKey]) -> None:
        for key in keys:
            owned = self._owned.pop(key, None)
            if owned is not None:
                place = Place(owned.grp, owned.entry, None, owned.attempts, owned.crashes, 0.0)
                self.program.placed.append(place)
                self.changes.topics.add(key.topic)

    def _fetch(self, wants: Sequence[Want]) -> Fetched:
        if self.scene.consumer is None:
            raise BackendError("fetch is only possible while serve() runs")
        merged = taking.merge_wants(wants)
        due = taking.next_due(self.connection, merged, self.scene.now)
        entries = taking.take(self.connection, self.scene, merged, self.program)
        return Fetched(entries=entries, position=self.position, next_due=due)


def _task(publication: Publication) -> tuple[str, str] | None:
    """What a repeat of this publication is known by, or None when none is looked for."""
    return (clean(publication.topic), clean(publication.task_id)) if publication.dedupe else None


def _publications(works: Sequence[Work[Any]]) -> Iterator[Publication]:
    for work in works:
        match work:
            case Publish(publications):
                yield from publications
            case Settle(settlements):
                for settlement in settlements:
                    yield from settlement.publications


def _keys(works: Sequence[Work[Any]]) -> Iterator[EntryKey]:
    for work in works:
        match work:
            case Settle(settlements):
                yield from (settlement.key for settlement in settlements)
            case Release(keys):
                yield from keys
