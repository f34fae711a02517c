"""Copies: a backup of the file while it is used, and putting one back while nobody uses it.

A backup is a whole database by itself, made of one moment: a reader's view, which holds up no writer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from omniactors.errors import BackendBusy, BackendError, BackendRefused, BackendUnusable
from omniactors.streams.sqlite import operations
from omniactors.streams.sqlite.database import lease_folder, lock_path, transaction
from omniactors.streams.sqlite.guard import index_path, is_in_use, log_path
from omniactors.streams.sqlite.lock import FileLock
from omniactors.streams.sqlite.schema import check_ours, connect, translate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_STEP: Final = 1024
"""Pages (4 MiB) between two looks whether the backup was cancelled."""


def write_copy(source: sqlite3.Connection, target: Path, *, overwrite: bool, look: Callable[[], None]) -> None:
    """Write what `source` reads to `target`, whole or not at all; `look` is called now and then and may raise.

    Raises BackendRefused when there is such a file already, unless it may be overwritten.
    """
    target = Path(os.path.realpath(target))
    (_, _, name) = source.execute("PRAGMA database_list").fetchone()
    with _errors(target):
        _check_target(target, Path(name), overwrite=overwrite)
        with _part(target) as part:
            copy = sqlite3.connect(part, isolation_level=None)
            with contextlib.closing(copy):
                source.backup(copy, pages=_STEP, progress=lambda *_: look())
                _set_free(copy)
                (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                found = " ".join(str(verdict).split())
                raise BackendUnusable(f"the store is damaged, and {target} would be: {found}; nothing was written")
            _sync(part)
            _check_target(target, Path(name), overwrite=overwrite)
            part.replace(target)
            _sync(target.parent)


def restore(path: Path, source: Path, *, wait: float) -> Path | None:
    """Put the backup `source` in the place of the database at `path`; where the replaced one is now, if there was one.

    Raises BackendRefused when `source` is no sound database of ours, BackendBusy when somebody uses the one at
    `path`, or does not let go of its file lock for `wait` seconds.
    """
    path, source = Path(os.path.realpath(path)), Path(os.path.realpath(source))
    with _errors(source):
        _check_source(path, source)
    with _errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_path(path))
        lock.acquire(wait)
        try:
            if path.exists() and is_in_use(path):
                raise BackendBusy(
                    f"{path} is in use: stop whatever has it open (runners, publishers, shells); nothing was changed"
                )
            with _part(path) as part:
                shutil.copyfile(source, part)
                _sync(part)
                aside = _set_aside(path)
                lock.write_note("")
                part.replace(path)
                _sync(path.parent)
            return aside
        finally:
            lock.close()


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise translate(error, path) from error


@contextlib.contextmanager
def _part(target: Path) -> Iterator[Path]:
    """A file beside `target` to be written and then put in its place; gone afterwards, whatever happens."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        yield part
    finally:
        for file in (part, log_path(part), index_path(part), part.with_name(part.name + "-journal")):
            file.unlink(missing_ok=True)


def _check_target(target: Path, store: Path, *, overwrite: bool) -> None:
    own = {Path(os.path.realpath(file)) for file in (store, log_path(store), index_path(store), lock_path(store))}
    if target in own or lease_folder(store) in target.parents:
        raise BackendRefused(f"{target} belongs to the store itself; choose another name")
    if target.is_dir():
        raise BackendRefused(f"{target} is a folder, and a backup is a file")
    if log_path(target).exists():
        raise BackendRefused(f"{target} is a database in use: its log stands beside it; choose another name")
    if target.exists() and not target.is_file():
        raise BackendRefused(f"{target} is no file but a device, a pipe or a socket, and a backup is a file")
    if target.exists() and not overwrite:
        raise BackendRefused(f"{target} exists already; nothing was written (--force, or overwrite=True, replaces it)")


def _set_free(copy: sqlite3.Connection) -> None:
    """Nobody who was at work then is in the copy: what they held is free, and was not tried."""
    with transaction(copy):
        for consumer in operations.read_consumer_ids(copy):
            operations.remove_consumer(copy, consumer, frozenset(), now=time.time())
    copy.execute("PRAGMA journal_mode = DELETE").fetchall()  # one file, that stands by itself


def _check_source(path: Path, source: Path) -> None:
    if not source.is_file():
        raise BackendRefused(f"{source} is no file")
    if source == path or (path.exists() and source.samefile(path)):
        raise BackendRefused(f"{source} is the store itself")
    if log_path(source).exists():
        raise BackendRefused(f"{source} has a log beside it, so it is a database in use, or a part of one")
    with contextlib.closing(sqlite3.connect(f"{source.as_uri()}?immutable=1", uri=True)) as connection:
        try:
            check_ours(connection, source)
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except (sqlite3.Error, BackendUnusable) as error:
            raise BackendRefused(str(translate(error, source))) from error
    if verdict != "ok" or not tables:
        raise BackendRefused(f"{source} is damaged or empty, and is not put back: {' '.join(str(verdict).split())}")


def _set_aside(path: Path) -> Path | None:
    """Give the database at `path`, if there is one, a second name, with its log; the first one is still there."""
    if not path.exists():
        log_path(path).unlink(missing_ok=True)
        return None
    aside = path.with_name(f"{path.name}.replaced-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    with contextlib.suppress(sqlite3.Error, BackendError):  # a damaged one goes as it is
        connect(path, synchronous="FULL", wait=1.0).close()  # which takes the log in, as the last one
    if log_path(path).exists():
        log_path(path).replace(log_path(aside))
    try:
        os.link(path, aside)
    except OSError:  # a file system without links
        path.replace(aside)
    index_path(path).unlink(missing_ok=True)
    return aside


def _sync(path: Path) -> None:
    """Have the disk confirm it, a file or a folder (which Windows does by itself)."""
    if sys.platform == "win32" and path.is_dir():
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
