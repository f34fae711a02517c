"""Operations: what is asked for rarely, or only read; one function each, on an open connection."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

import msgspec

from omniactors.errors import BackendError
from omniactors.streams.backend import AgentMetrics, AgentRecord, GroupInfo, RuntimeRecord, StreamInfo
from omniactors.streams.crashes import crashes_after
from omniactors.streams.inhand import group_digest
from omniactors.streams.portions import portions
from omniactors.streams.records import read_all
from omniactors.streams.settlement import ResultRecord
from omniactors.streams.sqlite.ids import show_id
from omniactors.streams.sqlite.program import Stage, clean, to_json

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

    from omniactors.streams.inhand import Begun
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
    (SELECT count(*) FROM dead WHERE dead.topic = grp.topic AND dead.agent = grp.agent),
    grp.served
FROM grp LEFT JOIN pending ON pending.grp = grp.id GROUP BY grp.id ORDER BY grp.topic, grp.agent
"""

_GROUP_COLUMNS: Final = ("agent", "waiting", "pending", "delayed", "dead", "served_at")

_LENGTHS: Final = """
SELECT names.topic, ifnull((SELECT length FROM stream WHERE stream.topic = names.topic), 0),
    (SELECT count(*) FROM scheduled WHERE scheduled.topic = names.topic)
FROM (SELECT topic FROM grp UNION SELECT topic FROM stream WHERE length > 0 UNION SELECT DISTINCT topic FROM dead)
    AS names
ORDER BY names.topic
"""

_NEEDLESS: Final = """
WITH gone AS (SELECT grp.id, grp.topic FROM json_each(:groups) CROSS JOIN grp
              ON grp.topic = json_extract(value, '$[0]') AND grp.agent = json_extract(value, '$[1]')),
    low AS (SELECT topic, min(cursor) AS cursor FROM grp
            WHERE topic IN (SELECT topic FROM gone) AND id NOT IN (SELECT id FROM gone) GROUP BY topic)
SELECT entry.id, entry.topic FROM low CROSS JOIN entry INDEXED BY entry_topic
ON entry.topic = low.topic AND entry.only IS NULL AND entry.id <= low.cursor
WHERE NOT EXISTS (SELECT 1 FROM pending INDEXED BY pending_entry
                  WHERE pending.entry = entry.id AND grp NOT IN (SELECT id FROM gone))
LIMIT :chunk
"""

_RESULTS: Final = """
SELECT CAST(json_group_array(json_array(task_id, id, CASE WHEN length(record) <= :inline THEN record END)) AS BLOB)
FROM (
    SELECT task_id, id, record FROM result
    WHERE task_id IN (SELECT value FROM json_each(:tasks)) AND expires > :now
    ORDER BY processed_at, id)
"""

_INLINE: Final = 1 << 15
"""Characters of a record that comes with the others; a longer one is read by itself."""

_TASKS: Final = 500
"""Tasks whose results are read at once."""

_results = msgspec.json.Decoder(list[tuple[str, int, str | None]])
_record = msgspec.json.Decoder(ResultRecord)
_agent = msgspec.json.Decoder(AgentRecord)
_serves = msgspec.json.Decoder(tuple[tuple[str, str, str], ...])


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
    for some in portions(list(names), len, count=_TASKS):
        parameters = {"tasks": to_json(some), "now": scene.now, "inline": _INLINE}
        (answer,) = connection.execute(_RESULTS, parameters).fetchone()
        for name, number, record in _results.decode(answer):
            text = record if record is not None else _read_record(connection, number)
            if text is not None:
                found[names[name]].append(_record.decode(text))
    return found


def _read_record(connection: sqlite3.Connection, number: int) -> str | None:
    """A record by itself; None when it was removed meanwhile."""
    row = connection.execute("SELECT record FROM result WHERE id = ?", (number,)).fetchone()
    return None if row is None else str(row[0])


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
    for topic, *numbers in rows:
        groups[topic].append(GroupInfo(**dict(zip(_GROUP_COLUMNS, numbers, strict=True))))
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
    return read_all(lambda row: _agent.decode(row[0]), rows, "registered agents")


def trim_without(connection: sqlite3.Connection, groups: Sequence[tuple[str, str]]) -> int:
    """Remove some entries that nobody would need if these groups were gone; how many there were.

    Those of a topic that would be left without any group are not looked at.
    """
    given = {"groups": to_json([(clean(topic), clean(agent)) for topic, agent in groups]), "chunk": _CHUNK}
    rows = connection.execute(_NEEDLESS, given).fetchall()
    connection.execute("DELETE FROM pending WHERE entry IN (SELECT value FROM json_each(?))", (_ids(rows),))
    connection.execute("DELETE FROM entry WHERE id IN (SELECT value FROM json_each(?))", (_ids(rows),))
    for topic in {topic for _, topic in rows}:
        count = sum(1 for _, its_topic in rows if its_topic == topic)
        connection.execute("UPDATE stream SET length = length - ? WHERE topic = ?", (count, topic))
    return len(rows)


def _ids(rows: Sequence[tuple[int, str]]) -> str:
    return to_json([number for number, _ in rows])


def delete_groups(connection: sqlite3.Connection, groups: Sequence[tuple[str, str]]) -> None:
    """Forget groups, what they have in hand, and their registrations; the pause of an agent without any group left."""
    for topic, agent in groups:
        key = (clean(topic), clean(agent))
        row = connection.execute("SELECT id FROM grp WHERE topic = ? AND agent = ?", key).fetchone()
        if row is not None:
            lost = connection.execute("DELETE FROM entry WHERE topic = ? AND only = ?", (key[0], row[0])).rowcount
            connection.execute("UPDATE stream SET length = length - ? WHERE topic = ?", (lost, key[0]))
            connection.execute("DELETE FROM pending WHERE grp = ?", row)
            connection.execute("DELETE FROM withdrawn WHERE grp = ?", row)
            connection.execute("DELETE FROM grp WHERE id = ?", row)
        connection.execute("DELETE FROM agent WHERE topic = ? AND name = ?", key)
    connection.execute(
        "DELETE FROM paused WHERE agent IN (SELECT value FROM json_each(?)) AND agent NOT IN (SELECT agent FROM grp)",
        (to_json([clean(agent) for _, agent in groups]),),
    )


def delete_entries(connection: sqlite3.Connection, topic: str) -> int:
    """Remove some entries and delayed publications of a topic without groups; how many there were."""
    count = 0
    for table in ("entry", "scheduled"):
        count += connection.execute(
            f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE topic = :topic LIMIT :chunk) "  # noqa: S608 -- one of two names
            "AND NOT EXISTS (SELECT 1 FROM grp WHERE topic = :topic)",
            {"topic": clean(topic), "chunk": _CHUNK},
        ).rowcount
    connection.execute("UPDATE stream SET length = length - ? WHERE topic = ?", (count, clean(topic)))
    return count


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


def remove_consumer(connection: sqlite3.Connection, consumer: str, begun: Begun | None, *, now: float) -> None:
    """Free what a consumer holds, counting a crash for what had `begun`, and strike it from the list."""
    crashes = _crashes(connection, consumer, begun)
    connection.executemany("UPDATE pending SET crashes = ? WHERE grp = ? AND entry = ?", crashes)
    connection.execute(
        "UPDATE grp SET owned = owned - held.entries FROM "
        "(SELECT grp, count(*) AS entries FROM pending WHERE consumer = ? GROUP BY grp) AS held WHERE id = held.grp",
        (consumer,),
    )
    connection.execute(
        "UPDATE pending SET consumer = NULL, due = 0, lane = NULL, stage = NULL WHERE consumer = ?", (consumer,)
    )
    connection.execute("DELETE FROM withdrawn WHERE consumer = ?", (consumer,))
    _note_served(connection, consumer, now)
    connection.execute("DELETE FROM consumer WHERE id = ?", (consumer,))


def _crashes(connection: sqlite3.Connection, consumer: str, begun: Begun | None) -> list[tuple[int, int, int]]:
    """(crashes, group, entry) of what a consumer holds and what has one more crash now."""
    if begun is not None and not begun:
        return []
    # What was handed over to it had not reached it: no crash of those.
    held = connection.execute(
        "SELECT grp.topic, grp.agent, grp, entry, crashes FROM pending JOIN grp ON grp.id = pending.grp "
        "WHERE consumer = ? AND stage IS NOT ?",
        (consumer, Stage.HANDED_OVER),
    ).fetchall()
    digests = {grp: group_digest(topic, agent) for topic, agent, grp, _, _ in held}
    changed = []
    for _, _, grp, entry, before in held:
        has_begun = None if begun is None else (digests[grp], show_id(entry)) in begun
        after = crashes_after(before, has_begun=has_begun, is_alone=len(held if begun is None else begun) == 1)
        if after != before:
            changed.append((after, grp, entry))
    return changed


def announce(connection: sqlite3.Connection, gateway: str | None, problem: str | None, scene: Scene) -> None:
    """Record where our gateway listens, or why it is down; raises BackendError when we are no consumer."""
    if scene.consumer is None:
        raise BackendError("announce is only possible while serve() runs")
    told = None if problem is None else clean(problem)
    connection.execute(
        "UPDATE consumer SET gateway = ?, gateway_problem = ? WHERE id = ?", (gateway, told, scene.consumer)
    )


def report(
    connection: sqlite3.Connection,
    serves: Sequence[tuple[tuple[str, str], str]],
    gave_up: Mapping[str, str],
    scene: Scene,
) -> None:
    """Record what we serve and as what we read it, and which of our agents gave up.

    Raises BackendError when we are no consumer.
    """
    if scene.consumer is None:
        raise BackendError("report is only possible while serve() runs")
    written = to_json([(clean(topic), clean(agent), reads) for (topic, agent), reads in serves])
    down = to_json({clean(agent): clean(reason) for agent, reason in gave_up.items()})
    connection.execute(
        "UPDATE consumer SET serves = ?, gave_up = ?, wanted = '[]' WHERE id = ?", (written, down, scene.consumer)
    )
    _note_served(connection, scene.consumer, scene.now)


def _note_served(connection: sqlite3.Connection, consumer: str, now: float) -> None:
    connection.execute(
        "UPDATE grp SET served = ? WHERE (topic, agent) IN (SELECT json_extract(value, '$[0]'), "
        "json_extract(value, '$[1]') FROM consumer CROSS JOIN json_each(consumer.serves) WHERE consumer.id = ?)",
        (now, consumer),
    )


def restart(connection: sqlite3.Connection, agent: str) -> int:
    """Have the consumers in which this agent gave up try it again; how many there are, dead ones included."""
    return connection.execute(
        "UPDATE consumer SET wanted = json_insert(wanted, '$[#]', :agent) "
        "WHERE EXISTS (SELECT 1 FROM json_each(gave_up) WHERE key = :agent)",
        {"agent": clean(agent)},
    ).rowcount


def read_restarts(connection: sqlite3.Connection, scene: Scene) -> frozenset[str]:
    """The agents of ours that somebody wants to be tried again."""
    rows = connection.execute(
        "SELECT value FROM consumer CROSS JOIN json_each(wanted) WHERE consumer.id = ?", (scene.consumer,)
    )
    return frozenset(agent for (agent,) in rows.fetchall())


def read_consumer_ids(connection: sqlite3.Connection) -> list[str]:
    """The same consumers by their ids alone, whatever else of them can be read."""
    return [consumer for (consumer,) in connection.execute("SELECT id FROM consumer").fetchall()]


def read_consumers(connection: sqlite3.Connection) -> list[RuntimeRecord]:
    """All consumers that are entered, also those that died without a word, oldest first."""
    rows = connection.execute(
        "SELECT id, pid, host, started_at, gateway, gateway_problem, serves, gave_up FROM consumer "
        "ORDER BY started_at, id"
    )
    return read_all(_consumer, rows.fetchall(), "registered runtimes")


def _consumer(row: tuple[Any, ...]) -> RuntimeRecord:
    consumer, pid, host, started_at, gateway, problem, written, gave_up = row
    serves = None if written is None else _serves.decode(written)
    return RuntimeRecord(
        consumer=consumer,
        pid=pid,
        host=host,
        started_at=started_at,
        gateway=gateway,
        gateway_problem=problem,
        groups=None if serves is None else tuple((topic, agent) for topic, agent, _ in serves),
        reads=() if serves is None else tuple(reads for _, _, reads in serves),
        gave_up=msgspec.json.decode(gave_up),
    )


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
