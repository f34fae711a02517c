"""Taking: which entries a fetch gets, and their bodies.

First the free ones that are due, by the time since when they are, then new ones in the order of
their publication; of a group never more than its credit.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

import msgspec

from omniactors.streams.backend import Entry, Want
from omniactors.streams.settlement import EntryKey
from omniactors.streams.sqlite.ids import show_id
from omniactors.streams.sqlite.operations import create_groups
from omniactors.streams.sqlite.program import Place, Program, clean, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omniactors.streams.sqlite.work import Scene

_CHUNK: Final = 100
"""Wants per statement; SQLite joins at most 500 SELECTs, and each want is two."""

_FREE: Final = """
SELECT * FROM (
    SELECT {want}, pending.grp, pending.entry, 0, pending.attempts, pending.crashes, entry.body
    FROM pending CROSS JOIN entry ON entry.id = pending.entry
    WHERE pending.grp = (SELECT id FROM grp WHERE topic = ? AND agent = ?)
    AND pending.consumer IS NULL AND pending.due <= ?
    ORDER BY pending.due, pending.entry LIMIT ?)
"""

_NEW: Final = """
SELECT * FROM (
    SELECT {want}, grp.id, entry.id, 1, 0, 0, entry.body
    FROM grp CROSS JOIN entry ON entry.topic = grp.topic AND entry.id > grp.cursor
    WHERE grp.topic = ? AND grp.agent = ? ORDER BY entry.id LIMIT ?)
"""

_GROUPS: Final = """
SELECT count(*),
    min((SELECT min(due) FROM pending WHERE pending.grp = grp.id AND consumer IS NULL AND due > ?))
FROM json_each(?) AS wanted CROSS JOIN grp
ON grp.topic = json_extract(wanted.value, '$[0]') AND grp.agent = json_extract(wanted.value, '$[1]')
"""


class _Found(msgspec.Struct, frozen=True, array_like=True):
    """An entry that can be taken for want number `want`; `body` is None when it is no text."""

    want: int
    grp: int
    entry: int
    new: int
    attempts: int
    crashes: int
    body: str | None


_found = msgspec.json.Decoder(list[_Found])


def merge_wants(wants: Sequence[Want]) -> list[Want]:
    """One want per group, with the sum of its credits."""
    room: dict[tuple[str, str], int] = {}
    for want in wants:
        group = (clean(want.topic), clean(want.agent))
        room[group] = room.get(group, 0) + max(want.credit, 0)
    return [Want(topic, agent, credit) for (topic, agent), credit in room.items()]


def take(connection: sqlite3.Connection, scene: Scene, wants: Sequence[Want], program: Program) -> list[Entry]:
    """The entries for `wants` (merged), which the program will write as ours."""
    entries: list[Entry] = []
    wants = [want for want in wants if want.credit > 0]
    for start in range(0, len(wants), _CHUNK):
        chunk = wants[start : start + _CHUNK]
        for found in _within_credit(_select(connection, chunk, scene.now), chunk):
            want = chunk[found.want]
            body = found.body.encode() if found.body is not None else _read_body(connection, found.entry)
            key = EntryKey(want.topic, want.agent, show_id(found.entry))
            entries.append(Entry(key=key, body=body, attempts=found.attempts, crashes=found.crashes))
            place = Place(found.grp, found.entry, scene.consumer, found.attempts, found.crashes, 0.0)
            program.placed.append(place)
            if found.new:
                program.cursors[found.grp] = found.entry
    return entries


def next_due(connection: sqlite3.Connection, wants: Sequence[Want], now: float) -> float | None:
    """Seconds until the next delayed entry of these groups (merged), or None. Makes groups that are missing."""
    groups = [(want.topic, want.agent) for want in wants]
    found, due = connection.execute(_GROUPS, (now, to_json(groups))).fetchone()
    if found < len(groups):
        create_groups(connection, groups)
    return None if due is None else max(0.0, due - now)


def _within_credit(found: Sequence[_Found], wants: Sequence[Want]) -> Iterator[_Found]:
    room = [want.credit for want in wants]
    for entry in found:
        if room[entry.want] > 0:
            room[entry.want] -= 1
            yield entry


def _select(connection: sqlite3.Connection, wants: Sequence[Want], now: float) -> list[_Found]:
    try:
        return _query(connection, wants, now, "CASE typeof(body) WHEN 'text' THEN body END")
    except (msgspec.DecodeError, UnicodeDecodeError, sqlite3.DataError):
        # They are too long for one row, or some body is no text although it says so (another program
        # wrote it): read them one by one.
        return _query(connection, wants, now, "NULL")


def _query(connection: sqlite3.Connection, wants: Sequence[Want], now: float, body: str) -> list[_Found]:
    """What can be taken, as one row: a row each would cost several hand-overs of the interpreter lock."""
    terms: list[str] = []
    parameters: list[object] = []
    for number, want in enumerate(wants):
        terms += _FREE.format(want=number), _NEW.format(want=number)
        parameters += want.topic, want.agent, now, want.credit, want.topic, want.agent, want.credit
    columns = f"want, grp, entry, new, attempts, crashes, {body}"
    statement = (
        f"WITH found (want, grp, entry, new, attempts, crashes, body) AS ({'UNION ALL'.join(terms)}) "  # noqa: S608 -- made of constants and numbers
        f"SELECT CAST(json_group_array(json_array({columns})) AS BLOB) FROM found"
    )
    (answer,) = connection.execute(statement, parameters).fetchone()
    return _found.decode(answer)


def _read_body(connection: sqlite3.Connection, entry: int) -> bytes:
    (body,) = connection.execute("SELECT CAST(body AS BLOB) FROM entry WHERE id = ?", (entry,)).fetchone()
    return bytes(body)
