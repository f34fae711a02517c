"""Diagnosis: what a file's durability and speed depend on, each looked at once."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from omniactors.errors import BackendError
from omniactors.streams.backend import Finding
from omniactors.streams.sqlite import operations
from omniactors.streams.sqlite.database import lock_path, transaction
from omniactors.streams.sqlite.ids import unix_time
from omniactors.streams.sqlite.lock import is_held
from omniactors.streams.sqlite.places import file_system, network_warning
from omniactors.streams.sqlite.schema import translate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from omniactors.streams.sqlite.database import Database, StoreSettings

_FEW_BYTES: Final = 1 << 30
"""Free space from which on down there is a warning; a tenth of it is an error."""

_CHECK_TIME: Final = 5.0
"""Seconds that the search for damage may take: a large file is not read to its end."""

_CHECK_STEPS: Final = 100_000
"""Steps of SQLite's machine between two looks at the time."""

_CLOCK_BEHIND: Final = 1.0
"""Seconds that the clock may be behind the newest id."""

_FIXED_SQLITE: Final = (3, 51, 3)


def diagnose(settings: StoreSettings, database: Database, is_alive: Callable[[str], bool]) -> list[Finding]:
    """All findings; the first is about reaching the store, and without that there are only those about its place."""
    findings = [_store(settings, database)]
    if settings.path is not None:
        findings += _place(settings.path)
    findings += [_sqlite(), _synchronous(settings)]
    if findings[0].status == "error":
        return findings
    try:
        findings += _contents(settings, database, is_alive)
    except (BackendError, sqlite3.Error, OSError) as error:
        findings.append(_failed("contents", translate(error, settings.path)))
    return findings


def _ok(check: str, message: str) -> Finding:
    return Finding(check=check, status="ok", message=message)


def _failed(check: str, error: BackendError) -> Finding:
    return Finding(check=check, status="error", message=" ".join(str(error).split()), advice="put right what it says")


def _store(settings: StoreSettings, database: Database) -> Finding:
    """Whether the store can be opened, locked and written; writes nothing."""
    try:
        with database.locked() as connection, transaction(connection):
            connection.execute("UPDATE clock SET last_id = last_id")
    except (BackendError, sqlite3.Error, OSError) as error:
        return _failed("store", translate(error, settings.path))
    return _ok("store", f"{settings.path or 'memory://'} can be read and written")


def _place(path: Path) -> Iterator[Finding]:
    folder = path.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            check="folder",
            status="error",
            message=f"the folder {folder} may not be written, and the log and the locks are files in it",
            advice="give the user of this process the right to write there",
        )
    else:
        yield _ok("folder", f"the folder {folder} can be written")
    kind = file_system(path)
    warning = network_warning(path, kind)
    if warning is not None:
        yield Finding(check="file system", status="warning", message=warning, advice="put it on a local disk")
    else:
        yield _ok("file system", f"the file system is {kind}" if kind else "the file system's kind cannot be told")
    yield from _disk_space(folder)


def _disk_space(folder: Path) -> Iterator[Finding]:
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    message = f"{free / (1 << 30):.1f} GiB are free on the disk of {folder}"
    if free >= _FEW_BYTES:
        yield _ok("disk space", message)
    elif free >= _FEW_BYTES / 10:
        yield Finding(check="disk space", status="warning", message=message, advice="make room, or move the file")
    else:
        yield Finding(check="disk space", status="error", message=message, advice="make room at once")


def _sqlite() -> Finding:
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info >= _FIXED_SQLITE:
        return _ok("sqlite", f"SQLite {version}")
    return _ok("sqlite", f"SQLite {version}; its WAL-reset bug is kept off by the file lock")


def _synchronous(settings: StoreSettings) -> Finding:
    if settings.path is None:
        return _ok("durability", "what is in memory ends with the process, as memory:// says")
    if settings.synchronous == "FULL":
        return _ok("durability", "synchronous is full: what was acknowledged survives a loss of power")
    return Finding(
        check="durability",
        status="warning",
        message="synchronous is normal: a loss of power may cost the last moments",
        advice="set OMNIACTORS_SYNCHRONOUS=full if they matter",
    )


def _contents(settings: StoreSettings, database: Database, is_alive: Callable[[str], bool]) -> Iterator[Finding]:
    connection = database.connected()
    if settings.path is not None:
        yield _lock(settings.path, database)
        yield _damage(settings.path, connection)
    yield _clock(connection, settings.clock())
    yield _consumers(connection, is_alive)


def _lock(path: Path, database: Database) -> Finding:
    with database.locked():
        if is_held(lock_path(database.path or path)):
            return _ok("file lock", "the file lock keeps other processes out")
    return Finding(
        check="file lock",
        status="error",
        message=f"locks do not work in {path.parent}: two processes can write at once and damage the file",
        advice="put it on a local disk",
    )


def _damage(path: Path, connection: sqlite3.Connection) -> Finding:
    end = time.monotonic() + _CHECK_TIME
    connection.set_progress_handler(lambda: time.monotonic() > end, _CHECK_STEPS)
    try:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_INTERRUPT:
            raise
        return _ok("damage", f"no damage was found in {_CHECK_TIME:g} s; the rest of {path} was not looked at")
    finally:
        connection.set_progress_handler(None, 0)
    if verdict == "ok":
        return _ok("damage", f"{path} is sound")
    return Finding(
        check="damage",
        status="error",
        message=f"{path} is damaged: {' '.join(str(verdict).split())}",
        advice="stop all processes, and restore a backup or use sqlite3's .recover",
    )


def _clock(connection: sqlite3.Connection, now: float) -> Finding:
    (last_id,) = connection.execute("SELECT last_id FROM clock").fetchone()
    behind = unix_time(last_id) - now
    if behind <= _CLOCK_BEHIND:
        return _ok("clock", "the clock is not behind the newest entry")
    return Finding(
        check="clock",
        status="warning",
        message=f"the clock is {behind:,.0f} s behind the newest entry: it was set back, or was wrong before",
        advice="set the clock, and have it kept by NTP",
    )


def _consumers(connection: sqlite3.Connection, is_alive: Callable[[str], bool]) -> Finding:
    consumers = [record.consumer for record in operations.read_consumers(connection)]
    alive = sum(map(is_alive, consumers))
    if alive == len(consumers):
        return _ok("consumers", f"consumers at work: {alive}")
    return Finding(
        check="consumers",
        status="warning",
        message=f"{len(consumers) - alive} of {len(consumers)} consumers ended without a word",
        advice="start omniactors run: it takes over what they held within a second",
    )
