"""The contract of backends, over a file and over memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from omniactors.streams.sqlite.backend import SqliteBackend
from tests.streams.contract import BackendContract, SharedContract, backend, other

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["backend", "other"]


class FileStore:
    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, *, stream_limit: int | None = None) -> SqliteBackend:
        return SqliteBackend(self._path, stream_limit=stream_limit)


class MemoryStore:
    def open(self, *, stream_limit: int | None = None) -> SqliteBackend:
        return SqliteBackend(None, stream_limit=stream_limit)


class TestFile(BackendContract, SharedContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> FileStore:
        return FileStore(tmp_path / "folder" / "omni.db")


class TestMemory(BackendContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()
