"""Operations: what is asked for rarely, or only read; one function each, on an open connection."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

import msgspec

from omniactors.errors import BackendError
from omniactors.streams.backend import AgentMetrics, AgentRecord, GroupInfo, RuntimeRecord, StreamInfo
from omniactors.streams.settlement import ResultRecord
from omniactors.streams.sqlite.program import Stage, clean, to_json

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from omniactors.streams.sqlite.work import Scene

_CHUNK: Final = 500
"""Rows that one round of cleaning deletes, so that it never holds up a publisher for long."""

_VACUUM_FROM: Final = 2048
"""Free pages (8 MiB) that the file keeps before it is made smaller."""

_VACUUM_STEP: Final = 256
"""Pages given back to the file system in one round."""

_GROUPS: Final = """
SELECT grp.topic, grp.agent,
    (SELECT count(*) FROM entry WHERE entry.topic = grp.topic AND entry.id > grp.cursor AND entry.only IS NULL)
        + (SELECT count(*) FROM entry WHERE entry.topic = grp.topic AND entry.only = grp.id AND entry.id > grp.cursor)
        + count(pending.entry) FILTER (WHERE pending.consumer IS NULL AND pending.due <= :now),
    count(pending.entry) FILTER (WHERE pending.consumer IS NOT NULL),
    count(pending.entry) FILTER (WHERE pending.consumer IS NULL AND pending.due > :now),
    (SELECT count(*) FROM dead WHERE dead.topic = grp.topic AND dead.agent = grp.agent)
FROM grp LEFT JOIN pending ON pending.grp = grp.id GROUP BY grp.id ORDER BY grp.topic, grp.agent
"""

_LENGTHS: Final = """
SELECT names.topic, ifnull((SELECT length FROM stream WHERE stream.topic = names.topic), 0),
    (SELECT count(*) FROM scheduled WHERE scheduled.topic = names.topic)
FROM (SELECT topic FROM grp UNION SELECT topic FROM stream WHERE length > 0 UNION SELECT DISTINCT topic FROM dead)
    AS names
ORDER BY names.topic
"""

_RESULTS: Final = """
SELECT CAST(json_group_array(json_array(task_id, record)) AS BLOB) FROM (
    SELECT task_id, record FROM result
    WHERE task_id IN (SELECT value FROM json_each(:tasks)) AND expires > :now
    ORDER BY processed_at, id)
"""

_results = msgspec.json.Decoder(list[tuple[str, str]])
_record = msgspec.json.Decoder(ResultRecord)
_agent = msgspec.json.Decoder(AgentRecord)


def create_groups(connection: sqlite3.Connection, groups: Sequence[tuple[str, str]]) -> None:
    """Create groups (topic, agent) at the start of their streams."""
    connection.executemany(
        "INSERT OR IGNORE INTO grp (topic, agent) VALUES (?, ?)",
        [(clean(topic), clean(agent)) for topic, agent in groups],
    )


def read_results(connection: sqlite3.Connection, tasks: Iterable[str], scene: Scene) -> dict[str, list[ResultRecord]]:
    """The unexpired results of these tasks, each oldest first; a task without any has an empty list."""
    found: dict[str, list[ResultRecord]] = {task: [] for task in tasks}
    names = {clean(task): task for task in found}
    (answer,) = connection.execute(_RESULTS, {"tasks": to_json(list(names)), "now": scene.now}).fetchone()
    for name, record in _results.decode(answer):
        found[names[name]].append(_record.decode(record))
    return found


def read_streams(connection: sqlite3.Connection, scene: Scene) -> list[StreamInfo]:
    """Every stream that has entries, groups or dead letters, by topic."""
    # One transaction, so that the numbers belong together.
    connection.execute("BEGIN")
    try:
        lengths = connection.execute(_LENGTHS).fetchall()
        rows = connection.execute(_GROUPS, {"now": scene.now}).fetchall()
    finally:
        connection.execute("COMMIT")
    groups: dict[str, list[GroupInfo]] = {topic: [] for topic, *_ in lengths}
    for topic, agent, waiting, pending, delayed, dead in rows:
        groups[topic].append(GroupInfo(agent=agent, waiting=waiting, pending=pending, delayed=delayed, dead=dead))
    return [
        StreamInfo(topic=topic, length=length - scheduled, groups=groups[topic], scheduled=scheduled)
        for topic, length, scheduled in lengths
    ]


def save_agents(connection: sqlite3.Connection, agents: Sequence[AgentRecord], scene: Scene) -> None:
    """Register agents; `created_at` 0 stands for now, and one that exists keeps its own."""
    for agent in agents:
        key = (clean(agent.topic), clean(agent.name))
        known = connection.execute("SELECT record FROM agent WHERE topic = ? AND name = ?", key).fetchone()
        created_at = _agent.decode(known[0]).created_at if known else agent.created_at or scene.now
        record = to_json(msgspec.structs.replace(agent, created_at=created_at))
        connection.execute("INSERT OR REPLACE INTO agent VALUES (?, ?, ?)", (*key, record))


def read_agents(connection: sqlite3.Connection) -> list[AgentRecord]:
    """The registered agents, by topic and name."""
    rows = connection.execute("SELECT record FROM agent ORDER BY topic, name").fetchall()
    return [_agent.decode(record) for (record,) in rows]


# -- pauses, counters, settings ----------------------------------------------------------------


def pause(connection: sqlite3.Connection, agent: str) -> None:
    """Have nobody take anything for this agent."""
    connection.execute("INSERT OR IGNORE INTO paused VALUES (?)", (clean(agent),))


def resume(connection: sqlite3.Connection, agent: str) -> None:
    """End a pause."""
    connection.execute("DELETE FROM paused WHERE agent = ?", (clean(agent),))


def read_paused(connection: sqlite3.Connection) -> frozenset[str]:
    """The agents that are paused."""
    return frozenset(agent for (agent,) in connection.execute("SELECT agent FROM paused").fetchall())


def read_metrics(connection: sqlite3.Connection) -> list[AgentMetrics]:
    """What every agent that has done anything has done, by topic and agent."""
    rows = connection.execute(
        "SELECT topic, agent, completed, retried, dead, seconds FROM grp "
        "WHERE completed + retried + dead > 0 ORDER BY topic, agent"
    )
    return [
        AgentMetrics(topic=topic, agent=agent, completed=completed, retried=retried, dead=dead, seconds=seconds)
        for topic, agent, completed, retried, dead, seconds in rows.fetchall()
    ]


def save_config(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Keep a value, given as JSON."""
    connection.execute("INSERT OR REPLACE INTO config VALUES (?, ?)", (clean(key), value))


def delete_config(connection: sqlite3.Connection, key: str) -> bool:
    """Forget a value; True when there was one."""
    return connection.execute("DELETE FROM config WHERE key = ?", (clean(key),)).rowcount > 0


def read_config(connection: sqlite3.Connection) -> dict[str, Any]:
    """All values, by key."""
    rows = connection.execute("SELECT key, value FROM config ORDER BY key").fetchall()
    return {key: msgspec.json.decode(value) for key, value in rows}


# -- consumers ----------------------------------------------------------------------------------


def add_consumer(connection: sqlite3.Connection, consumer: str, scene: Scene) -> None:
    """Enter a consumer whose lease is held already."""
    connection.execute(
        "INSERT INTO consumer (id, pid, host, started_at) VALUES (?, ?, ?, ?)",
        (consumer, os.getpid(), socket.gethostname(), scene.now),
    )


def remove_consumer(connection: sqlite3.Connection, consumer: str, *, crashes: int) -> None:
    """Free what a consumer holds, counting `crashes` more for each entry, and strike it from the list."""
    connection.execute(
        "UPDATE grp SET owned = owned - held.entries FROM "
        "(SELECT grp, count(*) AS entries FROM pending WHERE consumer = ? GROUP BY grp) AS held WHERE id = held.grp",
        (consumer,),
    )
    # What was handed over to it had not reached it: no crash of those.
    connection.execute(
        "UPDATE pending SET consumer = NULL, due = 0, crashes = crashes + CASE stage WHEN ? THEN 0 ELSE ? END, "
        "lane = NULL, stage = NULL WHERE consumer = ?",
        (Stage.HANDED_OVER, crashes, consumer),
    )
    connection.execute("DELETE FROM withdrawn WHERE consumer = ?", (consumer,))
    connection.execute("DELETE FROM consumer WHERE id = ?", (consumer,))


def announce(connection: sqlite3.Connection, gateway: str | None, scene: Scene) -> None:
    """Record where our gateway listens; raises BackendError when we are no consumer."""
    if scene.consumer is None:
        raise BackendError("announce is only possible while serve() runs")
    connection.execute("UPDATE consumer SET gateway = ? WHERE id = ?", (gateway, scene.consumer))


def read_consumers(connection: sqlite3.Connection) -> list[RuntimeRecord]:
    """All consumers that are entered, also those that died without a word, oldest first."""
    rows = connection.execute("SELECT id, pid, host, started_at, gateway FROM consumer ORDER BY started_at, id")
    return [
        RuntimeRecord(consumer=consumer, pid=pid, host=host, started_at=started_at, gateway=gateway)
        for consumer, pid, host, started_at, gateway in rows.fetchall()
    ]


# -- cleaning -----------------------------------------------------------------------------------


def has_expired(connection: sqlite3.Connection, scene: Scene) -> bool:
    """True when there are results or remembered ids past their time."""
    (found,) = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM result WHERE expires <= :now) "
        "OR EXISTS (SELECT 1 FROM dedupe WHERE expires <= :now)",
        {"now": scene.now},
    ).fetchone()
    return bool(found)


def remove_expired(connection: sqlite3.Connection, scene: Scene) -> None:
    """Delete some of what has expired."""
    limits = {"now": scene.now, "chunk": _CHUNK}
    connection.execute(
        "DELETE FROM result WHERE id IN (SELECT id FROM result WHERE expires <= :now LIMIT :chunk)", limits
    )
    connection.execute(
        "DELETE FROM dedupe WHERE (topic, task_id) IN "
        "(SELECT topic, task_id FROM dedupe WHERE expires <= :now LIMIT :chunk)",
        limits,
    )
    connection.execute("DELETE FROM stream WHERE length <= 0")


def is_loose(connection: sqlite3.Connection) -> bool:
    """True when the file has many free pages."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return bool(free >= _VACUUM_FROM)


def shrink(connection: sqlite3.Connection) -> None:
    """Give some free pages back to the file system; no transaction may be open."""
    # A script, because this pragma does one page per step.
    connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_STEP})")
