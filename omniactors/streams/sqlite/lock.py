"""File locks: one process writes at a time, and a consumer's lease is freed by the kernel when it dies.

The only module that knows how a system locks files (`flock`; on Windows `msvcrt`). A lock belongs
to the open file, not to the process, so two backends of one process exclude each other as well.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING

from omniactors.errors import BackendBusy
from omniactors.streams.inhand import TABLE_SIZE, read_begun

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from omniactors.streams.inhand import Begun, InHand

if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 30
    """Windows forbids reading what is locked; this byte is beyond anything that we write."""

    def _try_lock(fd: int) -> bool:
        os.lseek(fd, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _wait_lock(fd: int) -> None:
        while not _try_lock(fd):
            time.sleep(0.001)

    def _unlock(fd: int) -> None:
        os.lseek(fd, _FAR, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _wait_lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


_PID_WIDTH = 20
"""The holder's process id, padded, so that a shorter one overwrites a longer one whole."""


_NOTE_WIDTH = 60


class _LockFile:
    """An open lock file. A child that forks closes its copy at once: it would keep the lock alive."""

    def __init__(self, path: Path, flags: int) -> None:
        self._fd = -1
        _opened.add(self)
        self._fd = os.open(path, flags, 0o666)
        self._path = str(path)
        self._itself = os.fstat(self._fd)

    @property
    def fd(self) -> int:
        """The file descriptor, -1 once it is closed."""
        return self._fd

    def is_there(self) -> bool:
        """Whether it is still the file at its path."""
        try:
            there = os.stat(self._path)  # noqa: PTH116 -- quicker, and each batch does it
        except FileNotFoundError:
            return False
        return there.st_ino == self._itself.st_ino and there.st_dev == self._itself.st_dev

    def close(self) -> None:
        """Close it, and so let go of the lock; may be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


_opened: weakref.WeakSet[_LockFile] = weakref.WeakSet()


def _close_inherited() -> None:
    for file in list(_opened):
        with contextlib.suppress(OSError):
            file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


class FileLock:
    """An exclusive lock for one thread, with a bounded wait and the holder's process id in the file.

    `waiting` is a block that is entered while it waits.
    """

    def __init__(self, path: Path, waiting: AbstractContextManager[None] | None = None) -> None:
        self._path = path
        self._waiting = contextlib.nullcontext() if waiting is None else waiting
        self._file: _LockFile | None = None

    @property
    def folder(self) -> Path:
        """Where the lock file stands."""
        return self._path.parent

    def acquire(self, wait: float) -> None:
        """Take the lock; raises BackendBusy, naming the holder, after `wait` seconds, and OSError."""
        file = self._take(wait)
        while not file.is_there():  # it was removed, and another process has made another one
            self.close()
            file = self._take(wait)
        with contextlib.suppress(OSError):  # on a full disk the lock is as good without a name in it
            os.lseek(file.fd, 0, os.SEEK_SET)
            os.write(file.fd, f"{os.getpid():<{_PID_WIDTH}}\n".encode())

    def _take(self, wait: float) -> _LockFile:
        file = self._file or _LockFile(self._path, os.O_RDWR | os.O_CREAT)
        self._file = file
        if not _try_lock(file.fd) and not self._waited(file, wait):
            self._file = None  # it belongs to the waiter's thread now
            raise BackendBusy(
                f"{self._path} was held for more than {wait:g} s by process {self._holder()}; nothing was written"
            )
        return file

    def _waited(self, file: _LockFile, wait: float) -> bool:
        with self._waiting:
            return _Waiter(file).wait(wait)

    def release(self) -> None:
        """Let the next one in."""
        if self._file is not None:
            _unlock(self._file.fd)

    def close(self) -> None:
        """Close the file, which frees the lock; it may be acquired again."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def read_note(self) -> str:
        """What whoever held it last has noted for the next, or ""; to be called with the lock held."""
        if self._file is None:
            return ""
        os.lseek(self._file.fd, _PID_WIDTH + 1, os.SEEK_SET)
        return os.read(self._file.fd, _NOTE_WIDTH).decode("ascii", "replace").strip()

    def write_note(self, note: str) -> None:
        """Note something for the next, so that it outlives a loss of power; to be called with the lock held."""
        if self._file is not None and self.read_note() != note:
            os.lseek(self._file.fd, _PID_WIDTH + 1, os.SEEK_SET)
            os.write(self._file.fd, f"{note:<{_NOTE_WIDTH}}\n".encode())
            os.fsync(self._file.fd)

    def _holder(self) -> str:
        try:
            text = self._path.read_text(encoding="ascii", errors="replace")
            return text[:_PID_WIDTH].strip() or "unknown"
        except OSError:
            return "unknown"


class _Waiter:
    """A thread in the kernel's queue for a lock.

    Only a blocking call has a place in that queue (polling starves beside a busy writer), and only
    another thread can give up on a blocking call. A lock that comes too late is given back.
    """

    def __init__(self, file: _LockFile) -> None:
        self._file = file
        self._guard = threading.Lock()
        self._granted = threading.Event()
        self._given_up = False
        threading.Thread(target=self._block, name="omniactors-lock", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """True when the lock is ours; after False the file belongs to the thread, which closes it."""
        if self._granted.wait(seconds):
            return True
        with self._guard:
            self._given_up = not self._granted.is_set()
        return not self._given_up

    def _block(self) -> None:
        _wait_lock(self._file.fd)
        with self._guard:
            if self._given_up:
                self._file.close()
            else:
                self._granted.set()


def is_held(path: Path) -> bool:
    """True when somebody, we included, holds the lock on this file; raises OSError."""
    file = _LockFile(path, os.O_RDWR | os.O_CREAT)
    try:
        return not _try_lock(file.fd)
    finally:
        file.close()


class Lease:
    """The sign that a consumer lives: a locked file of its own, freed by the kernel however it dies.

    The file is locked before the consumer is entered in the database, so a consumer that is
    entered there and whose file can be locked is dead.
    """

    def __init__(self, path: Path, file: _LockFile) -> None:
        self._path = path
        self._file = file

    @classmethod
    def take(cls, folder: Path, consumer: str) -> Lease:
        """The lease of a new consumer; raises OSError when the folder cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / consumer
        while True:
            file = _LockFile(path, os.O_RDWR | os.O_CREAT)
            # Whoever sweeps the folder may have found the file before it was locked, and removed it.
            if _try_lock(file.fd) and path.exists():
                return cls(path, file)
            file.close()

    @classmethod
    def seize(cls, folder: Path, consumer: str) -> Lease | None:
        """The lease of a dead consumer, or None when it lives; raises FileNotFoundError when it has none.

        Raises another OSError when that cannot be told.
        """
        path = folder / consumer
        file = _LockFile(path, os.O_RDWR)
        if _try_lock(file.fd):
            return cls(path, file)
        file.close()
        return None

    def hold(self, in_hand: InHand) -> None:
        """Keep the table of what is in hand in the lease's file; raises OSError."""
        # Opened anew: a map keeps its descriptor open, also in a child that forks, and with it the lock.
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            in_hand.attach(descriptor)
        finally:
            os.close(descriptor)

    def begun(self) -> Begun | None:
        """What the consumer had in hand when it died, None when that cannot be told."""
        try:
            os.lseek(self._file.fd, 0, os.SEEK_SET)
            return read_begun(os.read(self._file.fd, TABLE_SIZE))
        except OSError:
            return None

    def close(self) -> None:
        """End the lease; its file stays."""
        self._file.close()

    def drop(self) -> None:
        """End the lease and remove its file."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._file.close()
