"""The program: all rows that one batch writes, run as a single statement.

Its other half is the trigger in `schema.py`, which gives the columns of each list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    import sqlite3


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


class Remembered(NamedTuple):
    """A task id that is not to be appended again."""

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
    """The lists that `schema.PROGRAM` works through, in its order."""

    last_id: int = 0
    entries: list[NewEntry] = field(default_factory=list)
    remembered: list[Remembered] = field(default_factory=list)
    dead: list[DeadEntry] = field(default_factory=list)
    done: list[tuple[int, int]] = field(default_factory=list)
    placed: list[Place] = field(default_factory=list)
    cursors: dict[int, int] = field(default_factory=dict)
    results: list[NewResult] = field(default_factory=list)
    blobs: list[tuple[bytes, int]] = field(default_factory=list)

    def append(self, topic: str, body: bytes, entry: int) -> None:
        """Add an entry. Bodies are stored as text where SQLite's JSON can carry them, else as bytes."""
        self.last_id = entry
        try:
            text = body.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            self.blobs.append((body, entry))
            text = ""
        self.entries.append(NewEntry(entry, topic, text))

    def run(self, connection: sqlite3.Connection, now: float) -> None:
        """Write everything; nothing is executed when there is nothing."""
        lists = (self.entries, self.remembered, self.dead, self.done, self.placed, self.results)
        if not any(lists) and not self.cursors:
            return
        columns = [self.entries, self.remembered, self.dead, self.done, self.placed]
        connection.execute(
            "INSERT INTO program VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                now,
                self.last_id,
                *map(to_json, columns),
                to_json(list(self.cursors.items())),
                to_json(self.results),
            ),
        )
        if self.blobs:
            connection.executemany("UPDATE entry SET body = ? WHERE id = ?", self.blobs)
