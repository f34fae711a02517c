"""Scheduling: delayed publications become entries when they are due, in the order of their times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from omniactors.streams.sqlite.ids import first_id
from omniactors.streams.sqlite.program import to_json

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

_CHUNK: Final = 1000
"""Entries of one topic that become visible at once, so that nobody waits long for a great many."""


def promote(connection: sqlite3.Connection, topics: Iterable[str], now: float) -> bool:
    """Append what is due in these topics; True when there may be more. To be called ahead of all appending."""
    has_more = False
    for topic in topics:
        due = connection.execute(
            "SELECT id FROM scheduled WHERE topic = ? AND due <= ? ORDER BY due, id LIMIT ?", (topic, now, _CHUNK)
        ).fetchall()
        if due:
            _append(connection, [number for (number,) in due], now)
        has_more = has_more or len(due) == _CHUNK
    return has_more


def _append(connection: sqlite3.Connection, numbers: list[int], now: float) -> None:
    (last_id,) = connection.execute("SELECT last_id FROM clock").fetchone()
    first = first_id(last_id, now)
    moved = to_json([(number, first + place) for place, number in enumerate(numbers)])
    connection.execute(
        "INSERT INTO entry (id, topic, body) SELECT json_extract(value, '$[1]'), topic, body "
        "FROM json_each(?) CROSS JOIN scheduled ON scheduled.id = json_extract(value, '$[0]')",
        (moved,),
    )
    connection.execute(
        "DELETE FROM scheduled WHERE id IN (SELECT json_extract(value, '$[0]') FROM json_each(?))", (moved,)
    )
    connection.execute("UPDATE clock SET last_id = ?", (first + len(numbers) - 1,))


def due_topics(connection: sqlite3.Connection, now: float) -> list[str]:
    """Topics in which something is due; not all of them when there are a great many."""
    rows = connection.execute(
        "SELECT DISTINCT topic FROM (SELECT topic FROM scheduled WHERE due <= ? ORDER BY due LIMIT ?)", (now, _CHUNK)
    )
    return [topic for (topic,) in rows.fetchall()]


def next_due(connection: sqlite3.Connection, topics: Iterable[str], now: float) -> float | None:
    """When the next delayed publication of these topics becomes visible, in Unix seconds, or None."""
    (due,) = connection.execute(
        "SELECT min((SELECT min(due) FROM scheduled WHERE topic = value AND due > ?)) FROM json_each(?)",
        (now, to_json(list(topics))),
    ).fetchone()
    return None if due is None else float(due)
