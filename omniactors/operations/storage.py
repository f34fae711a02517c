"""Copies of the whole store: `omni.storage.backup` while everything runs, `restore` while nothing does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omniactors.streams.runs import require_trio

if TYPE_CHECKING:
    import os

    from omniactors.streams.backend import Backend


class StorageOperations:
    """`omni.storage`: for the embedded file. A Redis server is copied by its own means; the errors say by which."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def backup(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Copy all that is stored at this moment to a file; returns its path.

        Others publish and work meanwhile. The copy is a database by itself: what was in hand is free in it. It is there
        whole or not at all. Raises BackendRefused when there is such a file, unless it may be overwritten.
        """
        require_trio()
        target = _absolute(path)
        await self._backend.backup(target, overwrite=overwrite)
        return target

    async def restore(self, path: str | os.PathLike[str]) -> Path | None:
        """Put a backup in the place of what is stored; returns where the replaced file is now, if there was one.

        Raises BackendBusy while any process has the store open, and BackendRefused when `path` is no sound backup;
        nothing is changed then.
        """
        require_trio()
        return await self._backend.restore(_absolute(path))


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(path).absolute()
