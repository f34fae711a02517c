"""The journals: one file per process, one record a line, appended at the moment the fact is known."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Literal

import msgspec

from tests.faults.checker import Kind, Record

if TYPE_CHECKING:
    from pathlib import Path

UP: Literal["up"] = "up"
"""The kind of the line that a program writes when it is ready."""

Line = tuple[float, str, Kind | Literal["up"], str]


class Journal:
    """The writing end, of one process. Each record is one write(2), so a kill leaves whole lines."""

    def __init__(self, path: Path, process: str) -> None:
        self.process = process
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, kind: Kind | Literal["up"], id: str) -> None:
        """Write one record, with the time of now."""
        os.write(self._file, msgspec.json.encode((time.monotonic(), self.process, kind, id)) + b"\n")


class Reader:
    """The reading end, of one file that grows. `is_up` says that the program has become ready."""

    def __init__(self, path: Path) -> None:
        self.is_up = False
        self._path = path
        self._offset = 0
        self._decoder = msgspec.json.Decoder(Line)

    def poll(self) -> list[Record]:
        """The records that were added since the last call, but for a last line that is not whole."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, mark, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(mark)
        records = []
        for line in whole.splitlines():
            at, process, kind, id = self._decoder.decode(line)
            if kind == UP:
                self.is_up = True
            else:
                records.append(Record(at, process, kind, id))
        return records
