# ruff: noqa: ASYNC240 -- files in a temporary folder and small processes
"""What else happens to the file while it is in use: it is read, copied, linked, deleted, replaced."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors.errors import BackendBusy, BackendUnusable
from omniactors.streams.sqlite.backend import SqliteBackend
from omniactors.streams.sqlite.places import refuse_other_names
from tests.streams.contract_kit import LIMIT, fetch, length, numbered, numbers, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ELSEWHERE = """
import sys, trio
from pathlib import Path
from omniactors.streams.sqlite.backend import SqliteBackend
from tests.streams.contract_kit import numbered
async def main() -> None:
    backend = SqliteBackend(Path(sys.argv[1]))
    await backend.publish(numbered(int(sys.argv[2]), start=1000))
    print(sum(stream.length for stream in await backend.streams()))
    await backend.close()
trio.run(main)
"""
"""Publishes, counts what there is, and closes the file, as the last one if it takes itself for that."""

FOREIGN = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute("SELECT count(*) FROM entry").fetchone()[0])
connection.close()
"""
"""Another program that reads the file, as a browser of databases does, and closes it."""

SUFFIXES = ("", "-wal", "-shm")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere SQLite's own locks are all there is")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "omni.db"


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend(path)
    with trio.fail_after(6 * LIMIT):
        yield backend
    await backend.close()


def elsewhere(path: Path, publish: int = 0, program: str = ELSEWHERE) -> int:
    """How many events another process sees, after it has published some."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(publish)], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


def read(path: Path) -> None:
    for suffix in SUFFIXES:
        hashlib.sha256((path.parent / (path.name + suffix)).read_bytes())


def copy(path: Path) -> None:
    for suffix in SUFFIXES:
        shutil.copy(f"{path}{suffix}", f"{path}{suffix}.copy")


def ask_with_sqlite(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("SELECT count(*) FROM entry").fetchall()
    connection.close()


@pytest.mark.parametrize("touch", [read, copy, ask_with_sqlite])
@pytest.mark.parametrize("program", [ELSEWHERE, FOREIGN])
async def test_reading_the_file_inside_the_process_loses_nothing(
    backend: SqliteBackend, path: Path, touch: object, program: str
) -> None:
    await backend.publish(numbered(1))
    for step in range(1, 3):
        assert callable(touch)
        touch(path)
        assert elsewhere(path, program=program) == step
        await backend.publish(numbered(1, start=step))
        assert elsewhere(path, program=program) == step + 1
    await backend.close()
    assert elsewhere(path) == 3


async def test_what_others_publish_is_seen_after_the_file_was_read(backend: SqliteBackend, path: Path) -> None:
    await backend.publish(numbered(1))
    async with serving(backend):
        read(path)
        await trio.to_thread.run_sync(elsewhere, path, 3)
        assert numbers(await fetch(backend)) == [0, 1000, 1001, 1002]


async def test_two_backends_of_one_process_may_close_one_after_the_other(backend: SqliteBackend, path: Path) -> None:
    other = SqliteBackend(path)
    await backend.publish(numbered(1))
    await other.publish(numbered(1, start=1))
    await other.close()
    assert elsewhere(path, 1) == 3
    await backend.publish(numbered(1, start=2))
    assert elsewhere(path) == 4


async def test_the_last_one_to_close_takes_the_log_along(backend: SqliteBackend, path: Path) -> None:
    await backend.publish(numbered(1))
    read(path)
    await backend.close()
    assert not [suffix for suffix in SUFFIXES[1:] if path.with_name(path.name + suffix).exists()]


@pytest.mark.parametrize("suffixes", [["-wal"], ["-shm"], ["-wal", "-shm"]])
async def test_a_deleted_log_or_index_loses_nothing(backend: SqliteBackend, path: Path, suffixes: list[str]) -> None:
    await backend.publish(numbered(5))
    for suffix in suffixes:
        path.with_name(path.name + suffix).unlink()
    await backend.publish(numbered(1, start=5))
    assert await length(backend) == 6
    assert elsewhere(path, 1) == 7
    assert await length(backend) == 7


async def test_a_runner_whose_log_is_deleted_works_on(backend: SqliteBackend, path: Path) -> None:
    await backend.publish(numbered(2))
    async with serving(backend) as consumer:
        assert numbers(await fetch(backend, 1)) == [0]
        for start in (2, 3):
            path.with_name("omni.db-wal").unlink()
            await backend.publish(numbered(1, start=start))
        assert numbers(await fetch(backend, 10)) == [1, 2, 3]
        assert [runtime.consumer for runtime in await backend.runtimes()] == [consumer]


async def test_a_deleted_log_is_put_back_by_who_has_the_newest_one(backend: SqliteBackend, path: Path) -> None:
    """The other one still has the log that was deleted first, and what came later is not in it."""
    log, other = path.with_name("omni.db-wal"), SqliteBackend(path)
    await backend.publish(numbered(1))
    await other.publish(numbered(1, start=1))
    log.unlink()
    await backend.publish(numbered(1, start=2))
    log.unlink()
    with pytest.raises(BackendBusy, match="was deleted or replaced"):
        await other.publish(numbered(1, start=3))
    await backend.publish(numbered(1, start=3))
    await other.publish(numbered(1, start=4))
    await other.close()
    await backend.close()
    assert elsewhere(path) == 5


async def test_who_opens_the_file_without_its_log_is_refused_until_it_is_back(
    backend: SqliteBackend, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await backend.publish(numbered(5))
    path.with_name("omni.db-wal").unlink()
    late = SqliteBackend(path)
    with pytest.raises(BackendBusy, match="was deleted or replaced"):
        await length(late)
    await backend.publish(numbered(1, start=5))
    assert await length(late) == 6
    await late.close()
    assert "what was in it is lost" not in caplog.text


async def test_another_log_in_the_place_of_ours_is_replaced_by_it(backend: SqliteBackend, path: Path) -> None:
    await backend.publish(numbered(5))
    log = path.with_name("omni.db-wal")
    log.unlink()
    log.write_bytes(b"")
    await backend.publish(numbered(1, start=5))
    await backend.close()
    assert elsewhere(path) == 6


async def test_a_log_that_was_cut_is_told_and_damages_nothing(
    backend: SqliteBackend, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await backend.publish(numbered(5))
    os.truncate(path.with_name("omni.db-wal"), 0)
    await backend.publish(numbered(1))
    assert any("what was in it is lost" in line for line in caplog.messages)
    assert elsewhere(path, 1) == 2
    assert await length(backend) == 2
    await backend.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_a_deleted_file_is_made_anew_and_told(
    backend: SqliteBackend, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await backend.publish(numbered(5))
    path.unlink()
    await backend.publish(numbered(1))
    assert elsewhere(path, 1) == 2
    assert await length(backend) == 2
    assert any("what was in it is lost" in line for line in caplog.messages)


async def test_a_folder_that_is_removed_is_made_anew_by_who_publishes(backend: SqliteBackend, path: Path) -> None:
    folder = path.parent / "below"
    below = SqliteBackend(folder / "omni.db")
    await below.publish(numbered(3))
    shutil.rmtree(folder)
    await below.publish(numbered(1))
    assert await length(below) == 1
    await below.close()


async def test_a_lock_file_that_nothing_can_be_written_to_locks_all_the_same(path: Path) -> None:
    path.with_name("omni.db.lock").symlink_to("/dev/full")  # as on a full disk
    backend = SqliteBackend(path)
    await backend.publish(numbered(1))
    assert await length(backend) == 1
    await backend.close()


async def test_a_folder_that_was_removed_is_not_made_again_by_closing(backend: SqliteBackend, path: Path) -> None:
    await backend.publish(numbered(1))
    shutil.rmtree(path.parent)
    await backend.close()
    assert not path.parent.exists()


async def test_a_removed_lock_file_lets_no_two_write_at_once(backend: SqliteBackend, path: Path) -> None:
    await backend.publish(numbered(1))
    path.with_name("omni.db.lock").unlink()
    assert elsewhere(path, 1) == 2
    await backend.publish(numbered(1, start=1))
    assert path.with_name("omni.db.lock").read_text().split()[0] == str(os.getpid())


# -- one file under several names ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "link to the folder", "relative"])
async def test_one_file_under_two_names_is_one_store(
    backend: SqliteBackend, path: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.publish(numbered(2))
    name = tmp_path / "other" / "app.db"
    if kind == "link":
        name.parent.mkdir()
        name.symlink_to(path)
    elif kind == "link to the folder":
        name = tmp_path / "folder" / path.name
        name.parent.symlink_to(tmp_path)
    else:
        monkeypatch.chdir(tmp_path)
        name = tmp_path / ".." / tmp_path.name / path.name
    other = SqliteBackend(name)
    async with serving(backend):
        assert len(await fetch(backend)) == 2
        async with serving(other):
            assert len(await other.runtimes()) == 2
            assert await fetch(other) == []
    await other.close()
    assert not list(name.parent.glob("app.db.*"))


async def test_a_hard_link_is_refused_since_its_log_would_stand_elsewhere(backend: SqliteBackend, path: Path) -> None:
    await backend.publish(numbered(1))
    await backend.close()
    name = path.with_name("second.db")
    os.link(path, name)
    with pytest.raises(BackendUnusable, match="has 2 names"):
        await SqliteBackend(name).publish(numbered(1))
    name.unlink()
    assert await length(backend) == 1


def test_a_file_that_is_mounted_by_itself_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"")
    table = path.with_name("mountinfo")
    table.write_text(f"36 35 98:0 /srv/omni.db {path} rw - ext4 /dev/root rw\n")
    monkeypatch.setattr("omniactors.streams.sqlite.places._MOUNTS", table)
    with pytest.raises(BackendUnusable, match="mount its folder instead"):
        refuse_other_names(path)
