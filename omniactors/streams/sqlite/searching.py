"""Searching: where a task is that has no result yet; every stream is looked through, since nobody else has to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from omniactors.streams.backend import Whereabouts
from omniactors.streams.sqlite.program import clean

if TYPE_CHECKING:
    import sqlite3

    from omniactors.streams.sqlite.work import Scene

_IS_IT: Final = """
instr({table}.body, :task) > 0 AND CASE WHEN typeof({table}.body) = 'text' AND json_valid({table}.body)
    THEN json_extract({table}.body, '$.task_id') = :task END
"""

_FOUND: Final = f"""
SELECT entry.topic, grp.agent, CASE
    WHEN grp.id IS NULL THEN 'queued'
    WHEN pending.entry IS NULL THEN CASE WHEN entry.id > grp.cursor THEN 'queued' END
    WHEN pending.consumer IS NOT NULL THEN 'running'
    WHEN pending.due > :now THEN 'retrying'
    ELSE 'queued' END AS state
FROM entry LEFT JOIN grp ON grp.topic = entry.topic AND (entry.only IS NULL OR entry.only = grp.id)
LEFT JOIN pending ON pending.grp = grp.id AND pending.entry = entry.id
WHERE {_IS_IT.format(table="entry")} AND (grp.id IS NULL OR pending.entry IS NOT NULL OR entry.id > grp.cursor)
UNION ALL SELECT topic, NULL, 'scheduled' FROM scheduled WHERE {_IS_IT.format(table="scheduled")}
"""  # noqa: S608 -- made of constants

_LEFT: Final = """
SELECT topic, 'expired' FROM dedupe WHERE task_id = :task
UNION ALL SELECT '', 'expired' FROM result WHERE task_id = :task AND expires <= :now
"""


def find_task(connection: sqlite3.Connection, task_id: str, scene: Scene) -> list[Whereabouts]:
    """Where the task is; only when it is nowhere, what is left of it."""
    given = {"task": clean(task_id), "now": scene.now}
    found = connection.execute(_FOUND, given).fetchall()
    if found:
        return [Whereabouts(topic=topic, agent=agent, state=state) for topic, agent, state in found]
    return [Whereabouts(topic=topic, state=state) for topic, state in connection.execute(_LEFT, given).fetchall()]
