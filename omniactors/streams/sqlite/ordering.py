"""Ordering: who is at work on an ordering key, and so may have the entries that carry it.

A key belongs to the consumer with entries of it that it claimed and that are not done yet. What
another one fetches of it is handed over: placed with the owner, who gets it from its next fetch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from omniactors.streams.sqlite.program import Stage, clean

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence


class LaneState(msgspec.Struct, frozen=True, array_like=True):
    """What a claim has to know of the key of claim number `place`.

    `owner` is at work on it (None: nobody), `is_withdrawn` says that nothing more may be handed to
    it, and `released` is the first entry that has come back to the group.
    """

    place: int
    owner: str | None
    is_withdrawn: int
    released: int | None


NO_LANE = LaneState(0, None, 0, None)


def withdraw(connection: sqlite3.Connection, groups: Sequence[tuple[str, str]], consumer: str | None) -> None:
    """Free what was handed over to this consumer, and have nothing handed over until it fetches again."""
    if consumer is None:
        return
    for topic, agent in groups:
        row = connection.execute(
            "SELECT id FROM grp WHERE topic = ? AND agent = ?", (clean(topic), clean(agent))
        ).fetchone()
        if row is None:
            continue
        handed = (row[0], Stage.HANDED_OVER, consumer)
        freed = connection.execute(
            "UPDATE pending SET consumer = NULL, due = 0, lane = NULL, stage = NULL "
            "WHERE grp = ? AND stage = ? AND consumer = ?",
            handed,
        ).rowcount
        connection.execute("UPDATE grp SET owned = owned - ? WHERE id = ?", (freed, row[0]))
        connection.execute("INSERT OR IGNORE INTO withdrawn VALUES (?, ?)", (row[0], consumer))


def come_back(connection: sqlite3.Connection, groups: Sequence[int], consumer: str) -> None:
    """End a withdrawal from these groups, given by their numbers."""
    connection.executemany("DELETE FROM withdrawn WHERE grp = ? AND consumer = ?", [(grp, consumer) for grp in groups])
