"""Dead letters: reading them, giving them back to their groups, and deleting them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

import msgspec

from omniactors.errors import StreamFull
from omniactors.streams.backend import DeadFilter, DeadLetter
from omniactors.streams.sqlite.ids import first_id, read_id, show_id
from omniactors.streams.sqlite.operations import create_groups
from omniactors.streams.sqlite.program import clean, to_json

if TYPE_CHECKING:
    import sqlite3

    from omniactors.streams.sqlite.work import Scene

_LISTED_BYTES: Final = 64 << 20
"""Of bodies in one list, but for the one that goes beyond."""

_COLUMNS: Final = """
id, topic, agent, entry, reason, error_type, error, traceback, attempts, failed_at, CAST(body AS BLOB)
"""


def read_dead_letters(connection: sqlite3.Connection, topic: str, where: DeadFilter, limit: int) -> list[DeadLetter]:
    """The newest dead letters of a topic that the filter admits, newest first; as many as `_LISTED_BYTES` hold."""
    condition, parameters = _condition(topic, where)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM dead WHERE {condition} ORDER BY id DESC LIMIT ?",  # noqa: S608 -- made of constants
        (*parameters, max(limit, 0)),
    )
    letters: list[DeadLetter] = []
    left = _LISTED_BYTES
    for row in rows:
        letters.append(_dead_letter(*row))
        left -= len(row[-1])
        if left <= 0:
            break
    rows.close()
    return letters


def purge(connection: sqlite3.Connection, topic: str, where: DeadFilter, limit: int) -> int:
    """Delete the oldest `limit` of them; how many there were."""
    condition, parameters = _condition(topic, where)
    return connection.execute(
        f"DELETE FROM dead WHERE id IN (SELECT id FROM dead WHERE {condition} ORDER BY id LIMIT ?)",  # noqa: S608 -- made of constants
        (*parameters, max(limit, 0)),
    ).rowcount


def replay(connection: sqlite3.Connection, scene: Scene, topic: str, where: DeadFilter, *, limit: int) -> int:
    """Append the oldest `limit` of them again, each for its own group alone; raises StreamFull."""
    condition, parameters = _condition(topic, where)
    letters = connection.execute(
        f"SELECT id, agent FROM dead WHERE {condition} ORDER BY id LIMIT ?",  # noqa: S608 -- made of constants
        (*parameters, max(limit, 0)),
    ).fetchall()
    if not letters:
        return 0
    length, last_id = connection.execute(
        "SELECT ifnull((SELECT length FROM stream WHERE topic = ?), 0), last_id FROM clock", (clean(topic),)
    ).fetchone()
    if scene.stream_limit is not None and length + len(letters) > scene.stream_limit:
        raise StreamFull(topic, length, scene.stream_limit, len(letters))
    create_groups(connection, list({(topic, agent) for _, agent in letters}))
    first = first_id(last_id, scene.now)
    moved = to_json([(number, first + place) for place, (number, _) in enumerate(letters)])
    _move(connection, moved)
    connection.execute("UPDATE clock SET last_id = ?", (first + len(letters) - 1,))
    connection.execute(
        "INSERT INTO stream VALUES (?, ?) ON CONFLICT (topic) DO UPDATE SET length = length + excluded.length",
        (clean(topic), len(letters)),
    )
    return len(letters)


def _move(connection: sqlite3.Connection, moved: str) -> None:
    """Make entries of dead letters; `moved` are pairs of a dead letter's id and an entry's.

    The results that told of their failure go with them: their tasks are open again.
    """
    connection.execute(
        "DELETE FROM result WHERE status = 'failed' AND (task_id, agent) IN ("
        "SELECT CASE WHEN json_valid(CAST(dead.body AS TEXT)) "
        "THEN json_extract(CAST(dead.body AS TEXT), '$.task_id') END, dead.agent "
        "FROM json_each(?) CROSS JOIN dead ON dead.id = json_extract(value, '$[0]'))",
        (moved,),
    )
    connection.execute(
        "INSERT INTO entry (id, topic, body, only) "
        "SELECT json_extract(value, '$[1]'), dead.topic, dead.body, grp.id "
        "FROM json_each(?) CROSS JOIN dead ON dead.id = json_extract(value, '$[0]') "
        "CROSS JOIN grp ON grp.topic = dead.topic AND grp.agent = dead.agent",
        (moved,),
    )
    connection.execute("DELETE FROM dead WHERE id IN (SELECT json_extract(value, '$[0]') FROM json_each(?))", (moved,))


def _condition(topic: str, where: DeadFilter) -> tuple[str, list[object]]:
    terms = ["topic = ?"]
    parameters: list[object] = [clean(topic)]
    ids = None if where.ids is None else to_json([read_id(number) for number in where.ids])
    for term, value in (
        ("agent = ?", None if where.agent is None else clean(where.agent)),
        ("reason = ?", where.reason),
        ("error_type = ?", None if where.error_type is None else clean(where.error_type)),
        ("failed_at >= ?", where.since),
        ("failed_at < ?", where.until),
        ("id IN (SELECT value FROM json_each(?))", ids),
    ):
        if value is not None:
            terms.append(term)
            parameters.append(value)
    return " AND ".join(terms), parameters


def _dead_letter(  # noqa: PLR0917 -- the columns, in their order
    number: int,
    topic: str,
    agent: str,
    entry: int,
    reason: Any,  # noqa: ANN401 -- one of DeadReason, as it was written
    error_type: str,
    error: str,
    traceback: str,
    attempts: int,
    failed_at: float,
    body: bytes,
) -> DeadLetter:
    text, encoding = _show_body(body)
    return DeadLetter(
        id=show_id(number),
        topic=topic,
        agent=agent,
        original_stream=f"omni-stream:{topic}",
        original_id=show_id(entry),
        failed_message=_read_object(body),
        error=error,
        reason=reason,
        error_type=error_type,
        traceback=traceback,
        attempts=attempts,
        retry_count=max(attempts - 1, 0),
        failed_at=failed_at,
        body=text,
        body_encoding=encoding,
    )


def _show_body(body: bytes) -> tuple[str, str]:
    try:
        return body.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(body).decode(), "base64"


def _read_object(body: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
