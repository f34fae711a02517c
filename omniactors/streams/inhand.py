"""In hand: a table of the events whose handlers have begun, kept where the death of the process cannot take it along.

It is a map of a file that others read when the process is gone: one row for each event in hand, as
wide as a cache line, so that to note a begin or an end costs a few hundred nanoseconds. A header in
front of the rows has a counter of the event loop's turns. Imports nothing but the standard library:
the companion process reads it too.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import weakref
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from omniactors.streams.settlement import EntryKey

_MAGIC: Final = b"omni-hand-1\0\0\0\0\0"
_HEADER: Final = struct.Struct("<16sQB")
_TICKS: Final = struct.Struct("<Q")
_TICKS_AT: Final = 16
_FULL_AT: Final = 24
_STOPS_AT: Final = 25

_WIDTH: Final = 64
_DIGEST: Final = 20
_ID_AT: Final = 2 + _DIGEST
_ID_WIDTH: Final = _WIDTH - _ID_AT
"""Enough for two numbers of 64 bits and the dash between them."""
_ROW: Final = struct.Struct(f"<B{_DIGEST}s{_ID_WIDTH}s")
"""A row behind its state: how long the entry's id is, the group, the id."""

_ROWS: Final = 4095
TABLE_SIZE: Final = _WIDTH * (1 + _ROWS)
"""Bytes: 256 KiB, of which a process touches what it needs."""

_FREE: Final = 0
_BEGUN: Final = 1
_ENDS_PROCESS: Final = 2

NO_ROW: Final = 0
"""The row of an event for which there was no room."""

Begun = frozenset[tuple[str, str]]
"""Events as (digest of the group, entry id); what is not known is None."""


def group_digest(topic: str, agent: str) -> str:
    """A name of fixed length for a group, however long its own is: SHA-1, since Redis' scripts know that."""
    name = f"group:{topic}:{agent}".encode("utf-8", "backslashreplace")
    return hashlib.sha1(name, usedforsecurity=False).hexdigest()


def read_begun(table: bytes, *, only: Literal["all", "culprits"] = "all") -> Begun | None:
    """What had begun, and of that perhaps only what ended its process; None when the table does not tell.

    A process that dies while it is being stopped does so for its own reasons: then only culprits count. An
    event whose row was being written counts or does not count: it had just begun.
    """
    if len(table) < TABLE_SIZE or not table.startswith(_MAGIC) or table[_FULL_AT]:
        return None
    least = _BEGUN if only == "all" and not table[_STOPS_AT] else _ENDS_PROCESS
    rows = (table[at : at + _WIDTH] for at in range(_WIDTH, TABLE_SIZE, _WIDTH) if table[at] >= least)
    return frozenset((row[2:_ID_AT].hex(), row[_ID_AT : _ID_AT + row[1]].decode("ascii", "replace")) for row in rows)


def read_ticks(header: bytes) -> int:
    """The counter of the loop's turns."""
    return int(_TICKS.unpack_from(header, _TICKS_AT)[0])


class InHand:
    """The table as its process writes it, from one thread. In memory until `attach` gives it a file."""

    def __init__(self) -> None:
        self._table: bytearray | mmap.mmap = bytearray(TABLE_SIZE)
        _HEADER.pack_into(self._table, 0, _MAGIC, 0, 0)
        self._free: list[int] = []
        self._next = _WIDTH
        self._heads: dict[tuple[str, str], bytes] = {}
        _tables.add(self)

    def attach(self, descriptor: int) -> None:
        """Keep the table in this file from now on; raises OSError, also when there is no room for it.

        The descriptor may be closed afterwards.
        """
        # Written, not left as a hole: to touch a hole on a full disk ends the process.
        view = memoryview(bytes(self._table))
        os.lseek(descriptor, 0, os.SEEK_SET)
        while view:
            view = view[os.write(descriptor, view) :]
        self.detach()
        self._table = mmap.mmap(descriptor, TABLE_SIZE)

    def detach(self) -> None:
        """Keep the table in memory again; the file is let go of."""
        if isinstance(self._table, mmap.mmap):
            table, self._table = self._table, bytearray(self._table)
            table.close()

    def begin(self, key: EntryKey) -> int:
        """Note that a handler begins with this event; the row to end."""
        if self._free:
            row = self._free.pop()
        elif self._next < TABLE_SIZE:
            row, self._next = self._next, self._next + _WIDTH
        else:
            self._table[_FULL_AT] = 1
            return NO_ROW
        group = (key.topic, key.agent)
        head = self._heads.get(group) or self._head(group)
        name = key.entry_id.encode("ascii", "replace")[:_ID_WIDTH]
        _ROW.pack_into(self._table, row + 1, len(name), head, name)
        self._table[row] = _BEGUN  # last: a row that is half written is none
        return row

    def end(self, row: int) -> None:
        """Note that the handler is done, however it ended."""
        if row:
            self._table[row] = _FREE
            self._free.append(row)

    def stop(self) -> None:
        """Note that the process is being stopped."""
        self._table[_STOPS_AT] = 1

    def blame(self, row: int) -> None:
        """Note that the handler of this event ends the process in order."""
        if row:
            self._table[row] = _ENDS_PROCESS

    def tick(self) -> None:
        """The event loop is alive."""
        _TICKS.pack_into(self._table, _TICKS_AT, read_ticks(bytes(self._table[:_WIDTH])) + 1)

    def read(self) -> bytes:
        """The table as it is now."""
        return bytes(self._table)

    def clear(self) -> None:
        """Nothing is in hand: a new run begins."""
        for at in range(_WIDTH, self._next, _WIDTH):
            self._table[at] = _FREE
        self._table[_FULL_AT] = self._table[_STOPS_AT] = 0
        self._free.clear()
        self._next = _WIDTH

    def _head(self, group: tuple[str, str]) -> bytes:
        head = self._heads[group] = bytes.fromhex(group_digest(*group))
        return head


_tables: weakref.WeakSet[InHand] = weakref.WeakSet()


def _let_go_of_inherited() -> None:
    for inherited in list(_tables):
        inherited.detach()


if hasattr(os, "register_at_fork"):
    # The map is shared: what a child that forked notes is none of its parent's.
    os.register_at_fork(after_in_child=_let_go_of_inherited)
