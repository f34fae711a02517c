"""A batch: all publishes, settlements, releases and the fetch of one transaction, in a few statements.

It reads what it has to know (the newest id, repeats, ownership, lengths), decides in plain code, and leaves
a `Program` to be written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
from outcome import Error, Value

from omniactors.errors import BackendError, StreamFull
from omniactors.streams.backend import Fetched, Published
from omniactors.streams.sqlite import ordering, scheduling, taking
from omniactors.streams.sqlite.ids import first_id, read_id, show_id
from omniactors.streams.sqlite.ordering import NO_LANE, LaneState
from omniactors.streams.sqlite.program import (
    DeadEntry,
    Mark,
    NewResult,
    Place,
    Program,
    Remembered,
    Stage,
    clean,
    to_json,
)
from omniactors.streams.sqlite.work import Changes, Claim, Fetch, Group, Publish, Release, Scene, Settle, Work

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping, Sequence

    from outcome import Outcome

    from omniactors.streams.backend import Want
    from omniactors.streams.settlement import Dead, EntryKey, Publication, ResultRecord, Settlement
    from omniactors.streams.sqlite.taking import GroupState

_STATE: Final = """
SELECT last_id,
    CASE WHEN :tasks IS NULL THEN '[]' ELSE (
        SELECT json_group_array(json_array(wanted.key, dedupe.entry))
        FROM json_each(:tasks) AS wanted CROSS JOIN dedupe ON dedupe.topic = json_extract(wanted.value, '$[0]')
        AND dedupe.task_id = json_extract(wanted.value, '$[1]')
        WHERE dedupe.expires > :now) END,
    CASE WHEN :keys IS NULL THEN '[]' ELSE (
        SELECT json_group_array(json_array(wanted.key, pending.grp, pending.entry, pending.attempts, pending.crashes,
                                           pending.lane IS NOT NULL))
        FROM json_each(:keys) AS wanted CROSS JOIN grp
        ON grp.topic = json_extract(wanted.value, '$[0]') AND grp.agent = json_extract(wanted.value, '$[1]')
        CROSS JOIN pending ON pending.grp = grp.id AND pending.entry = json_extract(wanted.value, '$[2]')
        WHERE pending.consumer = :consumer) END,
    CASE WHEN :lanes IS NULL THEN '[]' ELSE (
        SELECT json_group_array(json_array(place, owner,
            EXISTS (SELECT 1 FROM withdrawn WHERE grp = claimed AND consumer = ifnull(owner, :consumer)),
            (SELECT min(entry) FROM pending INDEXED BY pending_due
             WHERE grp = claimed AND consumer IS NULL AND due = 0)))
        FROM (SELECT wanted.key AS place, grp.id AS claimed,
                  (SELECT consumer FROM pending INDEXED BY pending_lane
                   WHERE pending.grp = grp.id AND lane = json_extract(wanted.value, '$[2]') LIMIT 1) AS owner
              FROM json_each(:lanes) AS wanted CROSS JOIN grp
              ON grp.topic = json_extract(wanted.value, '$[0]') AND grp.agent = json_extract(wanted.value, '$[1]'))
        ) END,
    CASE WHEN :topics IS NULL THEN '[]' ELSE (
        SELECT json_group_array(json_array(stream.topic, length))
        FROM json_each(:topics) CROSS JOIN stream ON stream.topic = value) END
FROM clock
"""

Merged = Publish | Settle | Release | Claim | Fetch

_Lane = tuple[str, str, str]
"""Topic, agent, ordering key."""


class _Owned(msgspec.Struct, frozen=True, array_like=True):
    """An entry in our hands; `place` is that of its key among those asked for."""

    place: int
    grp: int
    entry: int
    attempts: int
    crashes: int
    is_claimed: int


_repeats = msgspec.json.Decoder(list[tuple[int, int]])
_owned = msgspec.json.Decoder(list[_Owned])
_lanes = msgspec.json.Decoder(list[LaneState])
_lengths = msgspec.json.Decoder(list[tuple[str, int]])


@dataclass(eq=False)
class Batch:
    """Merged work of one transaction; made anew for each. `position` is what a fetch hands out.

    `clipped` are the groups (topic, agent) that got less than there is because of their limit,
    `freed` those that have fewer entries in hand now.
    """

    connection: sqlite3.Connection
    scene: Scene
    position: int
    changes: Changes = field(default_factory=Changes)
    program: Program = field(default_factory=Program)
    clipped: set[Group] = field(default_factory=set)
    freed: set[Group] = field(default_factory=set)
    _known: dict[tuple[str, str], int] = field(default_factory=dict)
    _owned: dict[EntryKey, _Owned] = field(default_factory=dict)
    _lanes: dict[_Lane, LaneState] = field(default_factory=dict)
    _released: dict[int, int] = field(default_factory=dict)
    _lengths: dict[str, int] = field(default_factory=dict)
    _outlook: _Outlook | None = None

    def run(self, works: Sequence[Merged]) -> list[Outcome[Any]]:
        """Carry all of them out; the answers, in their order. After an exception roll back."""
        for work in works:
            if isinstance(work, Fetch) and self.scene.consumer is not None:
                self._look(work)
        if any(not isinstance(work, Fetch) for work in works):
            self._read_state(works)
        answers = [self._outcome(work) for work in works]
        self.program.run(self.connection, self.scene.now)
        return answers

    def _outcome(self, work: Merged) -> Outcome[Any]:
        """A refusal is the answer of its work alone: it comes before anything of it was written."""
        match work:
            case Publish(publications):
                return self._publish(publications)
            case Settle(settlements):
                return Value([self._settle(settlement) for settlement in settlements])
            case Release(keys):
                for key in keys:
                    self._release(key)
                return Value(None)
            case Claim(keys):
                return Value(self._claim_many(keys))
            case Fetch():
                return self._fetch()

    def _read_state(self, works: Sequence[Work[Any]]) -> None:
        tasks = list({task for publication in _publications(works) if (task := _task(publication))})
        keys = [key for key in dict.fromkeys(_keys(works)) if key.consumer == self.scene.consumer]
        lanes = list({_lane(key, lane) for key, lane in _claims(works)})
        is_bounded = self.scene.stream_limit is not None
        topics = {clean(publication.topic) for publication in _publications(works)} if is_bounded else ()
        parameters = {
            "tasks": _rows(tasks),
            "keys": _rows([(clean(key.topic), clean(key.agent), read_id(key.entry_id)) for key in keys]),
            "lanes": _rows(lanes),
            "topics": _rows(list(topics)),
            "consumer": self.scene.consumer,
            "now": self.scene.now,
        }
        last_id, repeats, owned, found_lanes, lengths = self.connection.execute(_STATE, parameters).fetchone()
        self.program.last_id = last_id
        self._known = {tasks[place]: entry for place, entry in _repeats.decode(repeats)}
        self._owned = {keys[found.place]: found for found in _owned.decode(owned)}
        self._lanes = {lanes[found.place]: found for found in _lanes.decode(found_lanes)}
        self._lengths = dict(_lengths.decode(lengths))

    def _next_id(self) -> int:
        self.program.last_id = first_id(self.program.last_id, self.scene.now)
        return self.program.last_id

    # -- publishing -----------------------------------------------------------------------------

    def _publish(self, publications: Sequence[Publication]) -> Outcome[list[Published]]:
        if self.scene.stream_limit is not None:
            refusal = self._refusal(publications, self.scene.stream_limit)
            if refusal is not None:
                return Error(refusal)
        return Value([self._append_once(publication) for publication in publications])

    def _refusal(self, publications: Sequence[Publication], limit: int) -> StreamFull | None:
        """Why these cannot all be appended; repeats need no room."""
        tasks: set[tuple[str, str]] = set()
        added: dict[str, int] = {}
        for publication in publications:
            task = _task(publication)
            if task is not None and (task in self._known or task in tasks):
                continue
            if task is not None:
                tasks.add(task)
            topic = clean(publication.topic)
            length = self._lengths.get(topic, 0) + self.program.lengths.get(topic, 0)
            added[topic] = added.get(topic, 0) + 1
            if length + added[topic] > limit:
                wanted = sum(other.topic == publication.topic for other in publications)
                return StreamFull(publication.topic, length, limit, wanted)
        return None

    def _append_once(self, publication: Publication) -> Published:
        task = _task(publication)
        if task is not None and task in self._known:
            return Published(task_id=publication.task_id, entry_id=_show(self._known[task]), duplicate=True)
        entry = self._append(publication)
        if task is not None:
            self._known[task] = entry
            expires = self.scene.now + self.scene.dedupe_window
            self.program.remembered.append(Remembered(*task, entry, expires))
        return Published(task_id=publication.task_id, entry_id=_show(entry))

    def _append(self, publication: Publication) -> int:
        """The number of the new entry, 0 while it is delayed."""
        number, topic, now = self._next_id(), clean(publication.topic), self.scene.now
        due = publication.at if publication.at is not None else now + publication.delay
        entry = number if due <= now else 0
        if entry:
            self.program.append(topic, publication.body, number)
        else:
            self.program.schedule(topic, publication.body, number, due, is_delay=publication.at is None)
        self.changes.topics.add(publication.topic)
        return entry

    # -- the end of a delivery ------------------------------------------------------------------

    def _settle(self, settlement: Settlement) -> bool:
        owned = self._give_up(settlement.key)
        if owned is None:
            return False
        change = self.program.change(owned.grp)
        change.seconds += settlement.seconds
        if settlement.retry is not None:
            change.retried += 1
            due = self.scene.now + settlement.retry.after
            self.program.placed.append(Place(owned.grp, owned.entry, None, settlement.retry.attempts, 0, due))
            self.changes.topics.add(settlement.key.topic)
            return True
        self.program.finish(owned.grp, owned.entry, clean(settlement.key.topic))
        if settlement.dead is not None:
            change.dead += 1
            self._bury(settlement.key, settlement.dead, owned.entry)
        else:
            change.completed += 1
        if settlement.result is not None:
            self._store(settlement.result, settlement.result_ttl)
        for publication in settlement.publications:
            self._append(publication)
        return True

    def _give_up(self, key: EntryKey) -> _Owned | None:
        """The entry, which is not in our hands any more from now on; None when it was not."""
        owned = self._owned.pop(key, None)
        if owned is not None:
            self.program.change(owned.grp).owned -= 1
            self.program.marks.pop((owned.grp, owned.entry), None)  # it may have been claimed in this batch
            self.freed.add((key.topic, key.agent))
        return owned

    def _bury(self, key: EntryKey, dead: Dead, entry: int) -> None:
        self.program.dead.append(
            DeadEntry(
                id=self._next_id(),
                entry=entry,
                topic=clean(key.topic),
                agent=clean(key.agent),
                reason=dead.reason,
                error_type=clean(dead.error.type),
                error=clean(dead.error.text),
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

    def _release(self, key: EntryKey) -> None:
        owned = self._give_up(key)
        if owned is not None:
            self._free(owned)
            self.changes.topics.add(key.topic)

    def _free(self, owned: _Owned) -> None:
        self.program.placed.append(Place(owned.grp, owned.entry, None, owned.attempts, owned.crashes, 0.0))
        self._released[owned.grp] = min(owned.entry, self._released.get(owned.grp, owned.entry))

    # -- taking ---------------------------------------------------------------------------------

    def _claim_many(self, keys: Sequence[tuple[EntryKey, str]]) -> list[bool]:
        released = self._released.copy()  # what this claim itself gives back is no reason to give back more
        return [self._claim(key, lane, released) for key, lane in keys]

    def _claim(self, key: EntryKey, lane: str, released: Mapping[int, int]) -> bool:
        owned = self._owned.get(key)
        if owned is None or owned.is_claimed:
            return owned is not None
        state = self._lanes.get(_lane(key, lane), NO_LANE)
        back = [entry for entry in (state.released, released.get(owned.grp)) if entry is not None]
        if min(back, default=owned.entry) < owned.entry:
            self._release(key)
            return False
        if state.is_withdrawn:
            # Nobody here is woken: what frees the key is a commit of its owner, which wakes everybody.
            self._give_up(key)
            self._free(owned)
            return False
        if state.owner is None or state.owner == self.scene.consumer:
            self.program.mark(Mark(owned.grp, owned.entry, clean(lane), None))
            return True
        del self._owned[key]
        self.program.placed.append(Place(owned.grp, owned.entry, state.owner, owned.attempts, owned.crashes, 0.0))
        self.program.mark(Mark(owned.grp, owned.entry, clean(lane), Stage.HANDED_OVER))
        return False

    def _look(self, fetch: Fetch) -> None:
        """Learn what there is to fetch, and make visible what is due: ahead of what this batch appends.

        A group's cursor goes on to the last entry that was taken, so none with a lower id may
        be appended after that.
        """
        now = self.scene.now
        wants = taking.merge_wants(fetch.wants)
        states = taking.look(self.connection, self.scene, wants)
        delayed = {wants[state.want].topic: state.next_scheduled for state in states}
        due = [topic for topic, time in delayed.items() if time is not None and time <= now]
        has_more = scheduling.promote(self.connection, due, now) if due else False
        self.changes.topics.update(due)
        times = [state.next_retry for state in states] + [time for topic, time in delayed.items() if topic not in due]
        if due:
            times.append(scheduling.next_due(self.connection, due, now))
        next_due = min((time for time in times if time is not None), default=None)
        self._outlook = _Outlook(wants, states, next_due, has_more)

    def _fetch(self) -> Outcome[Fetched]:
        outlook = self._outlook
        if outlook is None:
            return Error(BackendError("fetch is only possible while serve() runs"))
        self._come_back(outlook)
        shares, clipped = taking.share_out(outlook.wants, outlook.states)
        self.clipped |= {(want.topic, want.agent) for want in clipped}
        entries, has_left = taking.take(self.connection, self.scene, shares, self.program)
        paused = frozenset(outlook.wants[state.want].agent for state in outlook.states if state.is_paused)
        due = outlook.next_due
        return Value(
            Fetched(
                entries=entries,
                position=self.position,
                next_due=None if due is None else max(0.0, due - self.scene.now),
                paused=paused,
                has_more=outlook.has_more or has_left,
            )
        )

    def _come_back(self, outlook: _Outlook) -> None:
        """Who fetches for a group again may be handed something over again."""
        states = [state for state in outlook.states if state.is_withdrawn and not state.is_paused]
        groups = [state.grp for state in states if outlook.wants[state.want].credit > 0]
        if groups and self.scene.consumer is not None:
            ordering.come_back(self.connection, groups, self.scene.consumer)


@dataclass(frozen=True)
class _Outlook:
    """What a fetch found before it takes anything: `next_due` in Unix seconds, `has_more` of what is due."""

    wants: list[Want]
    states: list[GroupState]
    next_due: float | None
    has_more: bool


def _rows(rows: list[Any]) -> str | None:
    """A parameter of `_STATE`; None spares it the question."""
    return to_json(rows) if rows else None


def _show(entry: int) -> str:
    """The entry's id; empty for one that is delayed, which has none yet."""
    return show_id(entry) if entry else ""


def _lane(key: EntryKey, lane: str) -> _Lane:
    return clean(key.topic), clean(key.agent), clean(lane)


def _task(publication: Publication) -> tuple[str, str] | None:
    """What a repeat of this publication is known by, or None when none is looked for."""
    return (clean(publication.topic), clean(publication.task_id)) if publication.dedupe else None


def _publications(works: Sequence[Work[Any]]) -> Iterator[Publication]:
    """What is published by itself: a settlement happens once, so what it publishes needs no look at what was before."""
    for work in works:
        if isinstance(work, Publish):
            yield from work.publications


def _keys(works: Sequence[Work[Any]]) -> Iterator[EntryKey]:
    for work in works:
        match work:
            case Settle(settlements):
                yield from (settlement.key for settlement in settlements)
            case Release(keys):
                yield from keys
            case Claim(claims):
                yield from (key for key, _ in claims)


def _claims(works: Sequence[Work[Any]]) -> Iterator[tuple[EntryKey, str]]:
    for work in works:
        if isinstance(work, Claim):
            yield from work.keys
