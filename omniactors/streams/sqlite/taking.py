"""Taking: which entries a fetch gets, and their bodies.

First those that were handed over to us, then the free ones that are due, by the time since when
they are, then new ones in the order of their publication; of a group never more than its credit.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

import msgspec

from omniactors.streams.backend import Entry, Want
from omniactors.streams.settlement import EntryKey
from omniactors.streams.sqlite.ids import show_id
from omniactors.streams.sqlite.operations import create_groups
from omniactors.streams.sqlite.program import Mark, Place, Program, Stage, clean, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omniactors.streams.sqlite.work import Scene

_CHUNK: Final = 100
"""Wants per statement; SQLite joins at most 500 SELECTs, and each want is three at most."""

_FETCH_BYTES: Final = 16 << 20
"""Of bodies that one fetch brings, but for the one that goes beyond."""

_LEAST_INLINE: Final = 1 << 10
"""Characters up to which a body always comes with its row; how many rows there are is bounded by the credit."""

_HANDED: Final = """
SELECT * FROM (
    SELECT {want}, pending.grp, pending.entry, 2, pending.attempts, pending.crashes, deliveries, entry.body
    FROM pending INDEXED BY pending_stage CROSS JOIN entry ON entry.id = pending.entry
    WHERE pending.grp = ? AND pending.stage = 2 AND pending.consumer = ? ORDER BY pending.entry LIMIT ?)
"""

_FREE: Final = """
SELECT * FROM (
    SELECT {want}, pending.grp, pending.entry, 0, pending.attempts, pending.crashes, deliveries + 1, entry.body
    FROM pending CROSS JOIN entry ON entry.id = pending.entry
    WHERE pending.grp = ? AND pending.consumer IS NULL AND pending.due <= ?
    ORDER BY pending.due, pending.entry LIMIT ?)
"""

_NEW: Final = """
SELECT * FROM (
    SELECT {want}, grp.id, entry.id, 1, 0, 0, 1, entry.body
    FROM grp CROSS JOIN entry ON entry.topic = grp.topic AND entry.id > grp.cursor AND entry.only IS NULL
    WHERE grp.id = ? ORDER BY entry.id LIMIT ?)
"""

_NEW_WITH_REPLAYED: Final = """
SELECT * FROM (
    SELECT {want}, grp.id, entry.id, 1, 0, 0, 1, entry.body
    FROM grp CROSS JOIN entry ON entry.id IN (
        SELECT id FROM (SELECT id FROM entry WHERE topic = grp.topic AND id > grp.cursor AND only IS NULL
                        ORDER BY id LIMIT ?)
        UNION ALL
        SELECT id FROM (SELECT id FROM entry WHERE topic = grp.topic AND only = grp.id AND id > grp.cursor
                        ORDER BY id LIMIT ?))
    WHERE grp.id = ? ORDER BY entry.id LIMIT ?)
"""

_GROUPS: Final = """
SELECT CAST(json_group_array(json_array(wanted.key, grp.id, grp.owned,
    (SELECT min(due) FROM pending WHERE pending.grp = grp.id AND consumer IS NULL AND due > :now),
    (SELECT min(due) FROM scheduled WHERE scheduled.topic = grp.topic),
    EXISTS (SELECT 1 FROM paused WHERE paused.agent = grp.agent),
    EXISTS (SELECT 1 FROM pending INDEXED BY pending_stage
            WHERE pending.grp = grp.id AND stage = 1 AND consumer <> :consumer),
    EXISTS (SELECT 1 FROM pending INDEXED BY pending_stage
            WHERE pending.grp = grp.id AND stage = 2 AND consumer = :consumer),
    EXISTS (SELECT 1 FROM withdrawn WHERE withdrawn.grp = grp.id AND consumer = :consumer),
    EXISTS (SELECT 1 FROM entry
            WHERE entry.topic = grp.topic AND entry.only = grp.id AND entry.id > grp.cursor))) AS BLOB)
FROM json_each(:groups) AS wanted CROSS JOIN grp
ON grp.topic = json_extract(wanted.value, '$[0]') AND grp.agent = json_extract(wanted.value, '$[1]')
"""


class GroupState(msgspec.Struct, frozen=True, array_like=True):
    """What a fetch has to know of the group of want number `want`; times in Unix seconds, or None.

    `is_gated` says that another consumer has fetched what it has not claimed yet, `has_handed` that
    something was handed over to us, `is_withdrawn` that we had enough of the group, `has_replayed` that
    there are new entries for this group alone.
    """

    want: int
    grp: int
    owned: int
    next_retry: float | None
    next_scheduled: float | None
    is_paused: int
    is_gated: int
    has_handed: int
    is_withdrawn: int
    has_replayed: int


class _Found(msgspec.Struct, frozen=True, array_like=True):
    """An entry that can be taken for want number `want`; `body` is None when it is no text, or a long one."""

    want: int
    grp: int
    entry: int
    kind: int
    attempts: int
    crashes: int
    deliveries: int
    body: str | None


class _Share(msgspec.Struct, frozen=True):
    """What one want may get: at most `credit` entries, and of those not handed over at most `fresh`."""

    want: Want
    state: GroupState
    credit: int
    fresh: int


_NEW_KIND: Final = 1
_HANDED_KIND: Final = 2

_found = msgspec.json.Decoder(list[_Found])
_states = msgspec.json.Decoder(list[GroupState])


def merge_wants(wants: Sequence[Want]) -> list[Want]:
    """One want per group, with the sum of its credits."""
    merged: dict[tuple[str, str], Want] = {}
    for want in wants:
        group = (clean(want.topic), clean(want.agent))
        known = merged.get(group)
        credit = max(want.credit, 0) + (known.credit if known is not None else 0)
        merged[group] = Want(*group, credit, want.limit, want.is_ordered)
    return list(merged.values())


def look(connection: sqlite3.Connection, scene: Scene, wants: Sequence[Want]) -> list[GroupState]:
    """The state of the wants' groups (merged). Makes groups that are missing."""
    groups = [(want.topic, want.agent) for want in wants]
    parameters = {"groups": to_json(groups), "now": scene.now, "consumer": scene.consumer}
    states = _states.decode(connection.execute(_GROUPS, parameters).fetchone()[0])
    if len(states) < len(groups):
        create_groups(connection, groups)
        states = _states.decode(connection.execute(_GROUPS, parameters).fetchone()[0])
    return states


def share_out(wants: Sequence[Want], states: Sequence[GroupState]) -> tuple[list[_Share], list[Want]]:
    """What each want may get, and the wants that get less because of their limit."""
    shares, clipped = [], []
    for state in states:
        want = wants[state.want]
        if want.credit <= 0 or state.is_paused:
            continue
        fresh = 0 if want.is_ordered and state.is_gated else want.credit
        if want.limit is not None and want.limit - state.owned < want.credit:
            clipped.append(want)
            fresh = min(fresh, max(want.limit - state.owned, 0))
        if fresh or state.has_handed:
            shares.append(_Share(want, state, want.credit, fresh))
    return shares, clipped


def take(
    connection: sqlite3.Connection, scene: Scene, shares: Sequence[_Share], program: Program
) -> tuple[list[Entry], bool]:
    """The entries for these shares, which the program will write as ours; True with them when they are not all.

    They are as many as fit into the bytes of one fetch, and one at least.
    """
    entries: list[Entry] = []
    left_bytes = _FETCH_BYTES
    for start in range(0, len(shares), _CHUNK):
        chunk = shares[start : start + _CHUNK]
        room = [[share.credit, share.fresh] for share in chunk]
        for found in _select(connection, scene, chunk):
            left = room[found.want]
            is_handed = found.kind == _HANDED_KIND
            if left[0] > 0 and (is_handed or left[1] > 0):
                if left_bytes <= 0:
                    return entries, True
                left[0] -= 1
                left[1] -= not is_handed
                share = chunk[found.want]
                _own(scene, share.want, found, program)
                entry = _entry(connection, scene, share.want, found)
                entries.append(entry)
                left_bytes -= len(entry.body)
    return entries, False


def _own(scene: Scene, want: Want, found: _Found, program: Program) -> None:
    if found.kind == _HANDED_KIND:
        program.mark(Mark(found.grp, found.entry, None, None))
        return
    program.placed.append(Place(found.grp, found.entry, scene.consumer, found.attempts, found.crashes, 0.0))
    if want.is_ordered:
        program.mark(Mark(found.grp, found.entry, None, Stage.UNCLAIMED))
    change = program.change(found.grp)
    change.owned += 1
    if found.kind == _NEW_KIND:
        change.cursor = found.entry


def _entry(connection: sqlite3.Connection, scene: Scene, want: Want, found: _Found) -> Entry:
    body = found.body.encode() if found.body is not None else _read_body(connection, found.entry)
    key = EntryKey(want.topic, want.agent, show_id(found.entry), scene.consumer or "")
    return Entry(key=key, body=body, attempts=found.attempts, crashes=found.crashes, deliveries=found.deliveries)


def _select(connection: sqlite3.Connection, scene: Scene, shares: Sequence[_Share]) -> list[_Found]:
    try:
        inline = max(_FETCH_BYTES // sum(share.credit for share in shares), _LEAST_INLINE)
        return _query(
            connection, scene, shares, f"CASE WHEN typeof(body) = 'text' AND length(body) <= {inline} THEN body END"
        )
    except (msgspec.DecodeError, UnicodeDecodeError, sqlite3.DataError):
        # They are too long for one row, or some body is no text although it says so (another program
        # wrote it): read them one by one.
        return _query(connection, scene, shares, "NULL")


def _query(connection: sqlite3.Connection, scene: Scene, shares: Sequence[_Share], body: str) -> list[_Found]:
    """What can be taken, as one row: a row each would cost several hand-overs of the interpreter lock."""
    terms: list[str] = []
    parameters: list[object] = []
    for number, share in enumerate(shares):
        grp = share.state.grp
        if share.state.has_handed:
            terms.append(_HANDED.format(want=number))
            parameters += grp, scene.consumer, share.credit
        if share.fresh:
            terms.append(_FREE.format(want=number))
            parameters += grp, scene.now, share.fresh
        if share.fresh and share.state.has_replayed:
            terms.append(_NEW_WITH_REPLAYED.format(want=number))
            parameters += share.fresh, share.fresh, grp, share.fresh
        elif share.fresh:
            terms.append(_NEW.format(want=number))
            parameters += grp, share.fresh
    columns = f"want, grp, entry, kind, attempts, crashes, deliveries, {body}"
    statement = (
        f"WITH found (want, grp, entry, kind, attempts, crashes, deliveries, body) AS ({'UNION ALL'.join(terms)}) "  # noqa: S608 -- made of constants and numbers
        f"SELECT CAST(json_group_array(json_array({columns})) AS BLOB) FROM found"
    )
    (answer,) = connection.execute(statement, parameters).fetchone()
    return _found.decode(answer)


def _read_body(connection: sqlite3.Connection, entry: int) -> bytes:
    (body,) = connection.execute("SELECT CAST(body AS BLOB) FROM entry WHERE id = ?", (entry,)).fetchone()
    return bytes(body)
