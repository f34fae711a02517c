"""Tables: the database's schema, as the steps that every file has gone through.

A new file takes all of them, so that it looks as one that has grown.
"""

from __future__ import annotations

from typing import Final

_FIRST: Final = """
CREATE TABLE clock (last_id INTEGER NOT NULL);
INSERT INTO clock VALUES (0);

CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    body NOT NULL
);
CREATE INDEX entry_topic ON entry (topic, id);

CREATE TABLE grp (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    agent TEXT NOT NULL,
    cursor INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, agent)
);

CREATE TABLE pending (
    grp INTEGER NOT NULL,
    entry INTEGER NOT NULL,
    consumer TEXT,
    attempts INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    due REAL NOT NULL,
    PRIMARY KEY (grp, entry)
) WITHOUT ROWID;
CREATE INDEX pending_entry ON pending (entry);
CREATE INDEX pending_due ON pending (grp, due, entry) WHERE consumer IS NULL;

CREATE TABLE dead (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    agent TEXT NOT NULL,
    entry INTEGER NOT NULL,
    reason TEXT NOT NULL,
    error_type TEXT NOT NULL,
    error TEXT NOT NULL,
    traceback TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    failed_at REAL NOT NULL,
    body NOT NULL
);
CREATE INDEX dead_topic ON dead (topic, id);

CREATE TABLE result (
    id INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL,
    agent TEXT NOT NULL,
    status TEXT NOT NULL,
    processed_at REAL NOT NULL,
    expires REAL NOT NULL,
    record TEXT NOT NULL,
    UNIQUE (task_id, agent)
);
CREATE INDEX result_expires ON result (expires);

CREATE TABLE dedupe (
    topic TEXT NOT NULL,
    task_id TEXT NOT NULL,
    entry INTEGER NOT NULL,
    expires REAL NOT NULL,
    PRIMARY KEY (topic, task_id)
) WITHOUT ROWID;
CREATE INDEX dedupe_expires ON dedupe (expires);

CREATE TABLE agent (
    topic TEXT NOT NULL,
    name TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (topic, name)
) WITHOUT ROWID;

CREATE TABLE consumer (
    id TEXT PRIMARY KEY,
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    started_at REAL NOT NULL,
    gateway TEXT
) WITHOUT ROWID;
"""

_SECOND: Final = """
ALTER TABLE entry ADD COLUMN only INTEGER;
DROP INDEX entry_topic;
CREATE INDEX entry_topic ON entry (topic, only, id);

ALTER TABLE grp ADD COLUMN owned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE grp ADD COLUMN completed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE grp ADD COLUMN retried INTEGER NOT NULL DEFAULT 0;
ALTER TABLE grp ADD COLUMN dead INTEGER NOT NULL DEFAULT 0;
ALTER TABLE grp ADD COLUMN seconds REAL NOT NULL DEFAULT 0;
UPDATE grp SET owned = (SELECT count(*) FROM pending WHERE pending.grp = grp.id AND consumer IS NOT NULL);

ALTER TABLE pending ADD COLUMN lane TEXT;
ALTER TABLE pending ADD COLUMN stage INTEGER;
CREATE INDEX pending_lane ON pending (grp, lane) WHERE lane IS NOT NULL;
CREATE INDEX pending_stage ON pending (grp, stage, entry) WHERE stage IS NOT NULL;

CREATE TABLE withdrawn (
    grp INTEGER NOT NULL,
    consumer TEXT NOT NULL,
    PRIMARY KEY (grp, consumer)
) WITHOUT ROWID;

CREATE TABLE stream (
    topic TEXT PRIMARY KEY,
    length INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO stream SELECT topic, count(*) FROM entry GROUP BY topic;

CREATE TABLE scheduled (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    body NOT NULL,
    due REAL NOT NULL
);
CREATE INDEX scheduled_topic ON scheduled (topic, due, id);
CREATE INDEX scheduled_due ON scheduled (due);

CREATE TABLE paused (agent TEXT PRIMARY KEY) WITHOUT ROWID;

CREATE TABLE config (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
"""
"""Replayed entries (`entry.only` is the one group that they are for), delayed ones (`scheduled`), ordering
keys (`pending.lane`), what has been fetched and not claimed yet or was handed over (`pending.stage`, as
`program.Stage`), consumers that take nothing more of a group (`withdrawn`), how many entries a group's
consumers have in hand (`grp.owned`), counters, pauses and settings. `stream.length` counts the
entries of a topic and what is scheduled for it."""

_THIRD: Final = """
ALTER TABLE consumer ADD COLUMN gateway_problem TEXT;
ALTER TABLE consumer ADD COLUMN serves TEXT;
ALTER TABLE consumer ADD COLUMN gave_up TEXT NOT NULL DEFAULT '{}';
ALTER TABLE consumer ADD COLUMN wanted TEXT NOT NULL DEFAULT '[]';
ALTER TABLE grp ADD COLUMN served REAL;
"""
"""Why a consumer's gateway is down, what each consumer serves (pairs of topic and agent, as JSON), which of its agents
gave up and why, which of those somebody wants to be tried again (`wanted`), and when a group was last known to be
served."""

_FOURTH: Final = """
ALTER TABLE pending ADD COLUMN deliveries INTEGER NOT NULL DEFAULT 1;
"""
"""How often an entry was handed to a consumer."""

_FIFTH: Final = """
ALTER TABLE clock ADD COLUMN beginning TEXT;
ALTER TABLE clock ADD COLUMN ahead REAL;
ALTER TABLE scheduled ADD COLUMN is_delay INTEGER NOT NULL DEFAULT 0;
"""
"""By how much the wall clock was ahead of the machine's uptime, of which start, and whether a scheduled event waits
for a length of time (or for a time that was given)."""

STEPS: Final = (_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH)
"""The n-th leads from version n - 1 to version n."""

SCHEMA_VERSION: Final = len(STEPS)
"""Kept in `PRAGMA user_version`; a database with a higher one was written by a newer omniactors."""
