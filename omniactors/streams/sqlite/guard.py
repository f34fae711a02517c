"""Guard: keeps SQLite's log in its place while we have the database open, and notices when a file was taken away.

SQLite's own locks are POSIX ones, and the kernel drops those as soon as anything in the process closes
any descriptor of the file: a backup, a checksum. The next program that closes the database takes itself
for the last one then, and deletes the log into which we go on to write. The locks here belong to
descriptors of their own, so that nothing ends them but us (`F_OFD_SETLK`, on Linux); they lie where
SQLite looks. Elsewhere the files are compared before and after each batch, and that is all.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_SHARED: Final = (0x40000002, 510)
"""The bytes of the database that whoever has it open holds a shared lock on: first, and how many."""

_INDEX_IN_USE: Final = (128, 1)
"""The byte of the log's index that says that it is in use: without a lock there it is made anew."""

_OURS: Final = (0x40000400, 1)
"""A byte of the page that SQLite leaves to locks: whoever of us has the database open holds a shared lock on it."""

_INDEX_HEADER: Final = struct.Struct("=12xBxHI28x")
"""Of the log's index, in the machine's bytes, twice there: whether it is filled, the size of a page, frames."""

_LOG_HEAD: Final = 32
"""Bytes in front of the first frame of a log ..."""

_FRAME_HEAD: Final = 24
"""... and in front of each one's page."""

_COPY_BYTES: Final = 1 << 20

if sys.platform == "linux" and sys.maxsize > 1 << 32:
    import fcntl

    def _lock(fd: int, kind: int, place: tuple[int, int]) -> bool:
        """Lock these bytes for this descriptor; False when another one's lock is in the way."""
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, *place, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
        except OSError:
            return False
        return True

    def _share(fd: int, place: tuple[int, int]) -> None:
        _lock(fd, fcntl.F_RDLCK, place)

    def _let_go(fd: int, place: tuple[int, int]) -> None:
        _lock(fd, fcntl.F_UNLCK, place)

    def _is_shared(path: Path, place: tuple[int, int]) -> bool:
        fd = os.open(path, os.O_RDWR)
        try:
            return not _lock(fd, fcntl.F_WRLCK, place)
        finally:
            os.close(fd)

else:

    def _share(fd: int, place: tuple[int, int]) -> None:
        """There are no such locks here."""

    def _let_go(fd: int, place: tuple[int, int]) -> None:
        """There are no such locks here."""

    def _is_shared(path: Path, place: tuple[int, int]) -> bool:  # noqa: ARG001 -- it cannot be told here
        """False: it cannot be told here."""
        return False


def is_in_use(path: Path) -> bool:
    """Whether anybody has this database open, another connection of this process included."""
    return _is_shared(path, _SHARED)


def is_guarded(path: Path) -> bool:
    """Whether there is a guard of this database, in whatever process."""
    return path.exists() and _is_shared(path, _OURS)


_Identity = tuple[int, int]
"""Device and inode."""


def log_path(path: Path) -> Path:
    """SQLite's write-ahead log of this database."""
    return path.with_name(path.name + "-wal")


def index_path(path: Path) -> Path:
    """The index of that log, which those who have it open share."""
    return path.with_name(path.name + "-shm")


def _files(path: Path) -> tuple[Path, Path, Path]:
    """The database, its log, and the log's index."""
    return path, log_path(path), index_path(path)


def log_inode(path: Path) -> int:
    """Which file stands as the log of this database: its inode, 0 when there is none."""
    found = _identity(log_path(path))
    return 0 if found is None else found[1]


def _identity(path: Path) -> _Identity | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Guard:
    """Descriptors of the three files of one open database, and the locks on them.

    Shared by all connections of this process: to close a descriptor of ours drops the POSIX locks of all of them.
    """

    def __init__(self, path: Path, known: tuple[_Identity | None, ...]) -> None:
        self._files = _files(path)
        self._known = known
        self._watched = tuple(zip(map(str, self._files), known, strict=True))
        self._holders = 0
        self._fds = [os.open(file, os.O_RDONLY) for file in self._files]
        self._lock()

    @classmethod
    def hold(cls, path: Path) -> Guard:
        """The guard of the database at this path, which is open; to be let go after it is closed."""
        with _registry.mutex:
            known = tuple(map(_identity, _files(path)))
            guard = _registry.guards.get(known)
            if guard is None:
                guard = _registry.guards[known] = cls(path, known)
            guard._holders += 1
            return guard

    def unlock(self) -> None:
        """Let SQLite see that it is the last one, if it is: called before an orderly close."""
        with _registry.mutex:
            if self._holders == 1:
                _let_go(self._fds[0], _SHARED)
                _let_go(self._fds[2], _INDEX_IN_USE)

    def release(self) -> None:
        """Let go of it, once the connection is closed."""
        with _registry.mutex:
            self._holders -= 1
            if self._holders == 0:
                _registry.guards.pop(self._known, None)
                self.close()

    def close(self) -> None:
        """Close the descriptors."""
        fds, self._fds = self._fds, []
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)

    def is_intact(self) -> bool:
        """Whether the files at the paths are those that we have open."""
        for name, known in self._watched:
            try:
                found = os.stat(name)  # noqa: PTH116 -- half as long as of a Path, and each batch does it often
            except OSError:
                return False
            if known != (found.st_dev, found.st_ino):
                return False
        return True

    @property
    def log_inode(self) -> int:
        """Which file the log is that we have open."""
        return self._known[1][1] if self._known[1] is not None else 0

    def sync(self) -> None:
        """Have the disk confirm the database, the time of its last change included."""
        with contextlib.suppress(OSError):
            os.fsync(self._fds[0])

    def is_there(self) -> bool:
        """Whether the database at the path is the one that we have open, whatever became of its log."""
        return _identity(self._files[0]) == self._known[0]

    def is_cut(self) -> bool:
        """Whether the log is shorter than its index says, since somebody truncated it; to be asked under the file lock.

        SQLite would go on behind the hole, and copy it into the database.
        """
        size = _INDEX_HEADER.size
        headers = os.pread(self._fds[2], 2 * size, 0)
        if len(headers) < 2 * size or headers[:size] != headers[size:]:
            return False  # it is not filled yet, or somebody is at it
        is_filled, page, frames = _INDEX_HEADER.unpack_from(headers)
        page = 1 << 16 if page == 1 else page
        return bool(is_filled and frames) and os.fstat(self._fds[1]).st_size < _LOG_HEAD + frames * (_FRAME_HEAD + page)

    def drop_log(self) -> None:
        """Remove the log and its index: what was copied into the database is a whole, and all that there is."""
        for file in self._files[1:]:
            file.unlink(missing_ok=True)

    def keeps_commits(self, newest: int) -> bool:
        """Whether what was committed is at the path, for whoever opens it next; to be asked under the file lock.

        `newest` is the inode of the log that one of us opened last, 0 if it is not known. If that is ours, and was
        deleted or replaced, it is put back: we still have it open. Another one is in the hands of another process.
        """
        known = self._known[1]
        if not self.is_there() or known is None:
            return False
        found = _identity(self._files[1])
        if found != known and (newest == known[1] or (not newest and found is None)):
            self._put_log_back()
            return True
        return found == known or newest not in {0, known[1]}

    def _put_log_back(self) -> None:
        path = self._files[1]
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as copy:
            place = 0
            while piece := os.pread(self._fds[1], _COPY_BYTES, place):
                copy.write(piece)
                place += len(piece)
            copy.flush()
            os.fsync(copy.fileno())
        part.replace(path)

    def _lock(self) -> None:
        _share(self._fds[0], _OURS)
        _share(self._fds[0], _SHARED)
        _share(self._fds[2], _INDEX_IN_USE)


class _Registry:
    """The guards of this process; one for each open database, since the locks that it makes up for are the process'."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew, with nothing held."""
        self.mutex = threading.Lock()
        self.guards: dict[tuple[_Identity | None, ...], Guard] = {}

    def forget_inherited(self) -> None:
        """In a child that was forked: the locks are the parent's, which keeps them."""
        guards = list(self.guards.values())
        self.renew()
        for guard in guards:
            guard.close()


_registry = _Registry()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_registry.forget_inherited)
