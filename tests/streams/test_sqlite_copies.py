# ruff: noqa: ASYNC240 -- files in a temporary folder and small processes
"""Backups of the embedded file while it is used, putting one back, and a log that belongs to another file."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors import OmniActors
from omniactors.errors import BackendBusy, BackendError, BackendRefused, BackendUnusable
from omniactors.streams.sqlite.backend import SqliteBackend
from tests.streams.contract_kit import LIMIT, event, fetch, length, numbered, numbers, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KILLED = """
import os, signal, sys, trio
from pathlib import Path
from omniactors.streams.sqlite.backend import SqliteBackend
from tests.streams.contract_kit import numbered
async def main() -> None:
    backend = SqliteBackend(Path(sys.argv[1]))
    for number in range(int(sys.argv[2])):
        await backend.publish(numbered(1, start=number))
    os.kill(os.getpid(), signal.SIGKILL)
trio.run(main)
"""
"""Publishes, and dies without closing the file: its log stays."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "omni.db"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "backups" / "copy.db"


@pytest.fixture
async def backend(path: Path, copy: Path) -> AsyncIterator[SqliteBackend]:
    copy.parent.mkdir()
    backend = SqliteBackend(path)
    with trio.fail_after(6 * LIMIT):
        yield backend
    await backend.close()


async def test_a_backup_is_one_moment_of_a_store_that_goes_on(backend: SqliteBackend, path: Path, copy: Path) -> None:
    """What is published together is in the copy together, whatever is published meanwhile."""
    await backend.publish(numbered(200))
    is_over = False

    async def publish() -> None:
        while not is_over:
            await backend.publish([event("a", topic="left"), event("b", topic="right")])

    async with serving(backend), trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        held = await fetch(backend, 50)
        await backend.backup(copy)
        is_over = True
        assert await length(backend, "left") >= 1
    assert len(held) == 50
    assert list(copy.parent.iterdir()) == [copy]
    restored = SqliteBackend(copy)
    assert await length(restored, "left") == await length(restored, "right")
    async with serving(restored):
        entries = await fetch(restored, 300)
        assert numbers(entries) == list(range(200))
        assert {(entry.attempts, entry.crashes) for entry in entries} == {(0, 0)}
    await restored.close()


async def test_a_backup_holds_up_no_writer(backend: SqliteBackend, copy: Path) -> None:
    await backend.publish([event(str(number), body=b"x" * 100_000) for number in range(100)])
    reader_is_on = trio.Event()
    async with trio.open_nursery() as nursery:

        async def back_up() -> None:
            reader_is_on.set()
            await backend.backup(copy)

        nursery.start_soon(back_up)
        await reader_is_on.wait()
        for number in range(20):
            await backend.publish(numbered(1, start=number))
    restored = SqliteBackend(copy)
    assert 100 <= await length(restored) <= 120
    await restored.close()


async def test_a_backup_overwrites_only_what_it_may(backend: SqliteBackend, path: Path, copy: Path) -> None:
    await backend.publish(numbered(1))
    copy.write_text("dear diary")
    with pytest.raises(BackendRefused, match="exists already"):
        await backend.backup(copy)
    assert copy.read_text() == "dear diary"
    await backend.backup(copy, overwrite=True)
    with pytest.raises(BackendRefused, match="is a folder"):
        await backend.backup(copy.parent, overwrite=True)
    with pytest.raises(BackendRefused, match="the store itself"):
        await backend.backup(path, overwrite=True)
    with pytest.raises(BackendError):
        await backend.backup(copy.parent / "nowhere" / "copy.db")
    assert list(copy.parent.iterdir()) == [copy]


async def test_a_backup_overwrites_no_file_of_the_store_and_no_device(
    backend: SqliteBackend, path: Path, copy: Path
) -> None:
    await backend.publish(numbered(3))
    lease = path.with_name("omni.db.consumers") / "1-ab"
    for own in (*(path.with_name(f"omni.db{suffix}") for suffix in ("", "-wal", "-shm", ".lock")), lease):
        with pytest.raises(BackendRefused, match="the store itself"):
            await backend.backup(own, overwrite=True)
    os.mkfifo(copy)
    with pytest.raises(BackendRefused, match="is no file"):
        await backend.backup(copy, overwrite=True)
    assert copy.is_fifo()
    assert await length(backend) == 3


async def test_a_damaged_store_takes_the_place_of_no_backup(backend: SqliteBackend, path: Path, copy: Path) -> None:
    await backend.publish([event(str(number), body=b"x" * 3000) for number in range(300)])
    await backend.backup(copy)
    good = copy.read_bytes()
    await backend.close()
    with path.open("r+b") as file:
        file.seek(4096 * 5)
        file.write(os.urandom(4096 * 30))
    with pytest.raises(BackendUnusable, match="damaged"):
        await backend.backup(copy, overwrite=True)
    assert copy.read_bytes() == good


async def test_a_backup_that_is_cancelled_leaves_nothing(backend: SqliteBackend, copy: Path) -> None:
    await backend.publish([event(str(number), body=b"x" * 100_000) for number in range(100)])
    with trio.CancelScope() as scope:
        scope.cancel()
        await backend.backup(copy)
    assert list(copy.parent.iterdir()) == []
    await backend.publish(numbered(1))


async def test_a_backup_is_put_back_and_the_replaced_file_is_kept(
    backend: SqliteBackend, path: Path, copy: Path
) -> None:
    await backend.publish(numbered(2))
    await backend.backup(copy)
    await backend.publish(numbered(3, start=2))
    with pytest.raises(BackendBusy, match="is in use"):
        await SqliteBackend(path).restore(copy)
    await backend.close()
    aside = await backend.restore(copy)
    assert await length(backend) == 2
    assert aside is not None
    kept = SqliteBackend(aside)
    assert await length(kept) == 5
    await kept.close()


async def test_what_a_process_that_died_left_in_the_log_is_kept_with_the_replaced_file(
    backend: SqliteBackend, path: Path, copy: Path
) -> None:
    await backend.publish(numbered(1))
    await backend.backup(copy)
    await backend.close()
    die(path, 4)
    aside = await backend.restore(copy)
    assert aside is not None
    kept = SqliteBackend(aside)
    assert (await length(backend), await length(kept)) == (1, 5)
    await kept.close()


@pytest.mark.parametrize("kind", ["missing", "text", "cut", "empty", "another program's", "with a log", "itself"])
async def test_what_is_no_sound_backup_is_not_put_back(
    backend: SqliteBackend, path: Path, copy: Path, kind: str
) -> None:
    await backend.publish(numbered(300))
    await backend.backup(copy)
    await backend.close()
    source = copy
    match kind:
        case "missing":
            copy.unlink()
        case "text":
            copy.write_text("dear diary, " * 1000)
        case "cut":
            copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])
        case "empty":
            copy.write_bytes(b"")
        case "another program's":
            copy.unlink()
            sqlite3.connect(copy).executescript("CREATE TABLE theirs (a)").connection.close()
        case "with a log":
            copy.with_name("copy.db-wal").write_bytes(b"something")
        case "itself":
            source = path
    with pytest.raises(BackendRefused):
        await backend.restore(source)
    assert await length(backend) == 300
    assert not list(path.parent.glob("*replaced*"))


async def test_a_store_that_is_not_there_yet_is_restored_too(
    backend: SqliteBackend, tmp_path: Path, copy: Path
) -> None:
    await backend.publish(numbered(2))
    await backend.backup(copy)
    other = SqliteBackend(tmp_path / "new" / "omni.db")
    assert await other.restore(copy) is None
    assert await length(other) == 2
    await other.close()


async def test_the_store_of_a_system_is_backed_up_by_its_url(tmp_path: Path) -> None:
    omni = OmniActors(f"sqlite:///{tmp_path}/omni.db")
    await omni.publish("orders", 1)
    assert await omni.storage.backup(str(tmp_path / "copy.db")) == tmp_path / "copy.db"
    await omni.shutdown()
    assert await omni.storage.restore(tmp_path / "copy.db") is not None
    assert [stream.length for stream in await omni.streams.list()] == [1]
    await omni.shutdown()


async def test_a_store_in_memory_says_that_it_has_no_copies(copy: Path) -> None:
    backend = SqliteBackend(None)
    with pytest.raises(BackendRefused, match="nothing to back up"):
        await backend.backup(copy)
    with pytest.raises(BackendRefused, match="empty at each start"):
        await backend.restore(copy)
    await backend.close()


# -- a log that stayed beside another file ------------------------------------------------------


def die(path: Path, count: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(count)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


async def test_a_log_beside_a_file_that_was_replaced_is_refused_with_a_sentence(
    backend: SqliteBackend, path: Path, copy: Path
) -> None:
    await backend.publish(numbered(3))
    await backend.backup(copy)
    await backend.close()
    die(path, 4)
    shutil.copy(copy, path)
    before = path.read_bytes()
    with pytest.raises(BackendUnusable, match="belongs to another file"):
        await backend.publish(numbered(1))
    assert path.read_bytes() == before
    path.with_name("omni.db-wal").unlink()
    path.with_name("omni.db-shm").unlink()
    assert await length(backend) == 3


@pytest.mark.parametrize("count", [4, 300])
async def test_the_log_of_a_process_that_died_is_taken_up(backend: SqliteBackend, path: Path, count: int) -> None:
    """Also after it has checkpointed."""
    die(path, count)
    assert path.with_name("omni.db-wal").stat().st_size > 0
    assert await length(backend) == count


async def test_a_checkpoint_in_which_the_process_died_is_no_reason_to_refuse(
    backend: SqliteBackend, path: Path
) -> None:
    die(path, 4)
    lock = path.with_name("omni.db.lock")
    pid = lock.read_text()[:21]
    lock.write_text(f"{pid}{'changing':<60}\n")
    os.utime(path)
    assert await length(backend) == 4


async def test_files_that_were_copied_together_are_opened_once_the_note_is_gone(
    backend: SqliteBackend, path: Path, tmp_path: Path
) -> None:
    die(path, 4)
    ignore = shutil.ignore_patterns("moved")
    shutil.copytree(path.parent, tmp_path / "moved", copy_function=shutil.copyfile, ignore=ignore)
    moved = SqliteBackend(tmp_path / "moved" / "omni.db")
    with pytest.raises(BackendUnusable, match=r"delete omni\.db\.lock"):
        await length(moved)
    (tmp_path / "moved" / "omni.db.lock").unlink()
    assert await length(moved) == 4
    await moved.close()
