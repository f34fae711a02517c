"""The program: all rows that one batch writes, run as a single statement whose trigger does the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    import sqlite3

_STEPS: Final = {
    "entries": """
        INSERT INTO entry (id, topic, body)
            SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
            FROM json_each(NEW.rows);
    """,
    "scheduled": """
        INSERT INTO scheduled (id, topic, body, due, is_delay)
            SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                   json_extract(value, '$[3]'), json_extract(value, '$[4]')
            FROM json_each(NEW.rows);
    """,
    "lengths": """
        INSERT INTO stream (topic, length)
            SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(NEW.rows) WHERE true
            ON CONFLICT (topic) DO UPDATE SET length = length + excluded.length;
    """,
    "remembered": """
        INSERT OR REPLACE INTO dedupe (topic, task_id, entry, expires)
            SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                   json_extract(value, '$[3]')
            FROM json_each(NEW.rows);
    """,
    "dead": """
        INSERT INTO dead (id, entry, topic, agent, reason, error_type, error, traceback, attempts, failed_at, body)
            SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                   json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
                   json_extract(value, '$[6]'), json_extract(value, '$[7]'), json_extract(value, '$[8]'),
                   NEW.now, entry.body
            FROM json_each(NEW.rows) CROSS JOIN entry ON entry.id = json_extract(value, '$[1]');
    """,
    "placed": """
        INSERT INTO pending (grp, entry, consumer, attempts, crashes, due)
            SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                   json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]')
            FROM json_each(NEW.rows) WHERE true
            ON CONFLICT (grp, entry) DO UPDATE SET consumer = excluded.consumer, attempts = excluded.attempts,
                crashes = excluded.crashes, due = excluded.due, lane = NULL, stage = NULL,
                deliveries = deliveries + (pending.consumer IS NULL AND excluded.consumer IS NOT NULL);
    """,
    "marked": """
        UPDATE pending SET lane = coalesce(json_extract(value, '$[2]'), lane), stage = json_extract(value, '$[3]')
            FROM json_each(NEW.rows)
            WHERE grp = json_extract(value, '$[0]') AND entry = json_extract(value, '$[1]');
    """,
    "groups": """
        UPDATE grp SET cursor = max(cursor, json_extract(value, '$[1]')),
                owned = owned + json_extract(value, '$[2]'), completed = completed + json_extract(value, '$[3]'),
                retried = retried + json_extract(value, '$[4]'), dead = dead + json_extract(value, '$[5]'),
                seconds = seconds + json_extract(value, '$[6]')
            FROM json_each(NEW.rows) AS changed WHERE grp.id = json_extract(changed.value, '$[0]');
    """,
    "done": """
        DELETE FROM pending WHERE (grp, entry) IN
            (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(NEW.rows));

        DELETE FROM entry
            WHERE id IN (SELECT json_extract(value, '$[1]') FROM json_each(NEW.rows))
            AND NOT EXISTS (SELECT 1 FROM pending WHERE pending.entry = entry.id)
            AND (entry.only IS NOT NULL
                 OR NOT EXISTS (SELECT 1 FROM grp WHERE grp.topic = entry.topic AND grp.cursor < entry.id));

        INSERT INTO program_kept VALUES (changes(), NEW.rows);
    """,
    "results": """
        INSERT INTO result (task_id, agent, status, processed_at, expires, record)
            SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                   json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]')
            FROM json_each(NEW.rows) WHERE true
            ON CONFLICT (task_id, agent) DO UPDATE SET status = excluded.status, processed_at = excluded.processed_at,
                expires = excluded.expires, record = excluded.record
            WHERE excluded.status = 'success' OR result.status <> 'success' OR result.expires <= NEW.now;
    """,
}
"""What is done with each list of a program that is not NULL, in this order: the dead need their entries' bodies,
and which entries nobody needs any more shows when the groups have moved on. `lengths` takes all that are
done for gone; see `_KEPT`."""


_KEPT: Final = """
CREATE TEMP VIEW program_kept (deleted, rows) AS SELECT NULL, NULL;
CREATE TEMP TRIGGER run_kept INSTEAD OF INSERT ON program_kept WHEN NEW.deleted < json_array_length(NEW.rows) BEGIN
    INSERT INTO stream (topic, length)
        SELECT topic, count(*) FROM entry
        WHERE id IN (SELECT json_extract(value, '$[1]') FROM json_each(NEW.rows)) GROUP BY topic
        ON CONFLICT (topic) DO UPDATE SET length = length + excluded.length;
END;
"""
"""Puts back what `lengths` has taken for gone, where fewer entries were deleted than groups are done with."""

_ONE: Final = """
CREATE TEMP VIEW program_{name} (now, rows) AS SELECT NULL, NULL;
CREATE TEMP TRIGGER run_{name} INSTEAD OF INSERT ON program_{name} WHEN NEW.rows IS NOT NULL BEGIN {statements} END;
"""

_ALL: Final = """
CREATE TEMP VIEW program (now, last_id, {columns}) AS SELECT NULL, NULL, {nulls};
CREATE TEMP TRIGGER run_program INSTEAD OF INSERT ON program BEGIN
    UPDATE clock SET last_id = NEW.last_id WHERE last_id < NEW.last_id;
    {steps}
END;
"""


def _program() -> str:
    return "".join(
        [
            _KEPT,
            *(_ONE.format(name=name, statements=statements) for name, statements in _STEPS.items()),
            _ALL.format(
                columns=", ".join(_STEPS),
                nulls=", ".join("NULL" for _ in _STEPS),
                steps=" ".join(f"INSERT INTO program_{name} VALUES (NEW.now, NEW.{name});" for name in _STEPS),  # noqa: S608 -- made of constants
            ),
        ]
    )


LARGE: Final = 1 << 17
"""Bytes from which on a body is written, and read, by itself: JSON would hold it a second and a third time, and
SQLite takes a billion bytes at once."""

PROGRAM: Final = _program()
"""What a batch writes, as one statement. Each statement costs several hand-overs of the interpreter
lock, and beside a busy trio thread each of those can take 5 ms; a trigger's statements cost none.
Each list has a trigger of its own, since one that does not run costs almost nothing, and a statement over
an empty list does."""


def to_json(value: object) -> str:
    """`value` as a JSON parameter of a statement."""
    return msgspec.json.encode(value).decode()


def clean(text: str) -> str:
    """`text` as SQLite's JSON can carry it: lone surrogates and NUL characters are written as escapes."""
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class NewEntry(NamedTuple):
    """An entry to be appended."""

    id: int
    topic: str
    body: str


class Scheduled(NamedTuple):
    """An entry that is to be appended at `due`, in Unix seconds; `is_delay` when that stands for a length of time."""

    id: int
    topic: str
    body: str
    due: float
    is_delay: int


class Remembered(NamedTuple):
    """A task id that is not to be appended again; `entry` is 0 for one that was delayed."""

    topic: str
    task_id: str
    entry: int
    expires: float


class Place(NamedTuple):
    """Where an entry stands in a group from now on: with a consumer, or free from `due` (Unix seconds) on."""

    grp: int
    entry: int
    consumer: str | None
    attempts: int
    crashes: int
    due: float


class Stage(IntEnum):
    """Why an entry in a consumer's hands is not at work; where the agent's events have no keys it always is."""

    UNCLAIMED = 1
    """Fetched: until it is claimed no other consumer gets anything of the group."""
    HANDED_OVER = 2
    """Given to the consumer of its key, who has not fetched it yet."""


class Mark(NamedTuple):
    """The ordering key of an entry that is placed with a consumer (None leaves it as it is), and its stage."""

    grp: int
    entry: int
    lane: str | None
    stage: Stage | None


@dataclass(slots=True)
class GroupChange:
    """What is to be added to a group's numbers, and its cursor, or 0 where that stays."""

    cursor: int = 0
    owned: int = 0
    completed: int = 0
    retried: int = 0
    dead: int = 0
    seconds: float = 0.0

    def row(self, grp: int) -> tuple[int, int, int, int, int, int, float]:
        """As the program reads it."""
        return grp, self.cursor, self.owned, self.completed, self.retried, self.dead, self.seconds


class DeadEntry(NamedTuple):
    """An entry that ends in the dead letters; its body is copied."""

    id: int
    entry: int
    topic: str
    agent: str
    reason: str
    error_type: str
    error: str
    traceback: str
    attempts: int


class NewResult(NamedTuple):
    """A result to be stored, unless it is a failure where a success stands."""

    task_id: str
    agent: str
    status: str
    processed_at: float
    expires: float
    record: str


@dataclass(eq=False)
class Program:
    """The lists that `PROGRAM` works through, in its order."""

    last_id: int = 0
    entries: list[NewEntry] = field(default_factory=list)
    scheduled: list[Scheduled] = field(default_factory=list)
    lengths: dict[str, int] = field(default_factory=dict)
    remembered: list[Remembered] = field(default_factory=list)
    dead: list[DeadEntry] = field(default_factory=list)
    done: list[tuple[int, int]] = field(default_factory=list)
    placed: list[Place] = field(default_factory=list)
    marks: dict[tuple[int, int], Mark] = field(default_factory=dict)
    groups: dict[int, GroupChange] = field(default_factory=dict)
    results: list[NewResult] = field(default_factory=list)
    blobs: list[tuple[bytes, int]] = field(default_factory=list)
    _ended: dict[int, str] = field(default_factory=dict)

    def append(self, topic: str, body: bytes, entry: int) -> None:
        """Add an entry."""
        self.entries.append(NewEntry(entry, topic, self._text(body, entry)))
        self._count(topic, entry)

    def schedule(self, topic: str, body: bytes, entry: int, due: float, *, is_delay: bool) -> None:
        """Add an entry that is visible from `due` on; `entry` says its place among others of that time."""
        self.scheduled.append(Scheduled(entry, topic, self._text(body, entry), due, int(is_delay)))
        self._count(topic, entry)

    def _text(self, body: bytes, entry: int) -> str:
        """Bodies are stored as text where SQLite's JSON can carry them well, else as bytes, in a second step."""
        if len(body) < LARGE:
            try:
                text = body.decode()
            except UnicodeDecodeError:
                text = "\0"
            if "\0" not in text:
                return text
        self.blobs.append((body, entry))
        return ""

    def _count(self, topic: str, entry: int) -> None:
        self.last_id = entry
        self.lengths[topic] = self.lengths.get(topic, 0) + 1

    def mark(self, mark: Mark) -> None:
        """Let an entry that stays with a consumer have this key and stage."""
        self.marks[mark.grp, mark.entry] = mark

    def finish(self, grp: int, entry: int, topic: str) -> None:
        """Let the group be done with an entry."""
        self.done.append((grp, entry))
        if entry not in self._ended:
            self._ended[entry] = topic

    def change(self, grp: int) -> GroupChange:
        """What is to be added to this group's numbers so far, to be added to."""
        change = self.groups.get(grp)
        if change is None:
            change = self.groups[grp] = GroupChange()
        return change

    def run(self, connection: sqlite3.Connection, now: float) -> None:
        """Write everything; nothing is executed when there is nothing."""
        lengths = self.lengths.copy()
        for topic in self._ended.values():
            lengths[topic] = lengths.get(topic, 0) - 1
        groups = [change.row(grp) for grp, change in self.groups.items()]
        lists = (
            *(self.entries, self.scheduled, list(lengths.items()), self.remembered, self.dead),
            *(self.placed, list(self.marks.values()), groups, self.done, self.results),
        )
        if not any(lists):
            return
        connection.execute(
            "INSERT INTO program VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (now, self.last_id, *(to_json(rows) if rows else None for rows in lists)),
        )
        if self.blobs:
            connection.executemany("UPDATE entry SET body = ? WHERE id = ?", self.blobs)
            connection.executemany("UPDATE scheduled SET body = ? WHERE id = ?", self.blobs)
