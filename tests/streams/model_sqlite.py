"""SQLite held against the model, in memory and in a file, with a clock of ours."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from omniactors.streams.sqlite.backend import SqliteBackend
from tests.streams.model_subject import BREATH

if TYPE_CHECKING:
    from pathlib import Path

    from omniactors.streams.backend import Backend

START = 1_800_000_000.0
"""Unix seconds at which the clock begins."""


class MemorySubject:
    """SQLite in memory: one backend, one consumer, and nothing left when it is closed."""

    consumers = 1
    is_shared = False
    has_clock = True
    is_lazy = False
    pause = 0.0

    def __init__(self, *, dedupe_window: float, stream_limit: int | None) -> None:
        self._now = START
        self._backend = SqliteBackend(None, dedupe_window=dedupe_window, stream_limit=stream_limit, clock=self.now)

    def open(self) -> Backend:
        return self._backend

    def open_keeper(self) -> Backend:
        return self.open()

    def now(self) -> float:
        return self._now

    def to_wall(self, moment: float) -> float:
        return moment

    async def breathe(self) -> None:
        self._now += BREATH

    async def step(self, seconds: float) -> None:
        self._now += seconds

    async def kill(self, consumer: str) -> None:
        raise NotImplementedError

    async def restart(self) -> None:
        raise NotImplementedError

    async def leftovers(self) -> list[str]:
        return []


class FileSubject(MemorySubject):
    """SQLite over a file, used by several backends as if each were a process of its own."""

    consumers = 3
    is_shared = True

    def __init__(self, path: Path, *, dedupe_window: float, stream_limit: int | None) -> None:
        super().__init__(dedupe_window=dedupe_window, stream_limit=stream_limit)
        self._path = path
        self._dedupe_window = dedupe_window
        self._stream_limit = stream_limit

    def open(self) -> Backend:
        return SqliteBackend(
            self._path,
            synchronous="NORMAL",  # what a loss of power leaves is not looked at here
            dedupe_window=self._dedupe_window,
            stream_limit=self._stream_limit,
            clock=self.now,
        )

    async def kill(self, consumer: str) -> None:
        """Remove the file whose lock is the sign of its life: the others can lock nothing there."""
        self._path.with_name(f"{self._path.name}.consumers").joinpath(consumer).unlink()

    async def restart(self) -> None:
        """All that is to do happened when the last backend was closed."""

    async def leftovers(self) -> list[str]:
        with closing(sqlite3.connect(self._path)) as connection:
            (entries,) = connection.execute("SELECT count(*) FROM entry").fetchone()
            (pending,) = connection.execute("SELECT count(*) FROM pending").fetchone()
            (consumers,) = connection.execute("SELECT count(*) FROM consumer").fetchone()
        counts = {"entries": entries, "pending": pending, "consumers": consumers}
        leases = self._path.with_name(f"{self._path.name}.consumers").iterdir()
        return [name for name, number in counts.items() if number] + [lease.name for lease in leases]
