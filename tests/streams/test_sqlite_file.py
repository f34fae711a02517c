# ruff: noqa: ASYNC240 -- a file in a temporary folder answers at once
"""The embedded file: what is refused and how, other trio runs and threads, a file that goes away, cleaning."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors.errors import BackendBusy, BackendError, BackendUnusable
from omniactors.streams.backend import Want
from omniactors.streams.settlement import Publication, Settlement
from omniactors.streams.sqlite.backend import SqliteBackend
from omniactors.streams.sqlite.lock import FileLock
from tests.streams.contract_kit import (
    AGENT,
    LIMIT,
    TOPIC,
    event,
    fetch,
    fetch_when_due,
    length,
    numbered,
    numbers,
    record,
    serving,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "omni.db"


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend(path)
    with trio.fail_after(6 * LIMIT):
        yield backend
    await backend.close()


async def refusal(path: Path) -> BackendUnusable:
    backend = SqliteBackend(path)
    with pytest.raises(BackendUnusable) as caught:
        await backend.publish(numbered(1))
    with pytest.raises(BackendUnusable):
        await backend.streams()
    await backend.close()
    assert str(caught.value).count("\n") == 0
    return caught.value


# -- what is refused ----------------------------------------------------------------------------


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("dear diary, " * 100)
    assert str(await refusal(path)).startswith(f"{path} is no SQLite database")
    assert path.read_text() == "dear diary, " * 100


async def test_a_folder_in_the_place_of_the_file_is_refused(path: Path) -> None:
    path.mkdir()
    assert str(await refusal(path)).startswith(f"{path} is a folder")


async def test_a_file_in_the_place_of_the_folder_is_refused(path: Path) -> None:
    path.write_text("")
    assert str(path) in str(await refusal(path / "omni.db"))


async def test_the_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    before = path.read_bytes()
    assert "another program" in str(await refusal(path))
    assert path.read_bytes() == before


async def test_a_newer_schema_is_refused(backend: SqliteBackend, path: Path) -> None:
    await backend.publish(numbered(1))
    await backend.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "newer omniactors (schema 99" in str(await refusal(path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert str(folder) in str(await refusal(folder / "omni.db"))


async def test_a_refused_file_may_be_put_right(backend: SqliteBackend, path: Path) -> None:
    path.write_text("no database, far from it")
    with pytest.raises(BackendUnusable):
        await backend.publish(numbered(1))
    path.unlink()
    await backend.publish(numbered(1))
    assert await length(backend) == 1


@pytest.mark.parametrize(
    "settings", [{"synchronous": "OFF"}, {"dedupe_window": -1}, {"lock_wait": float("nan")}, {"stream_limit": 0}]
)
def test_a_setting_without_meaning_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SqliteBackend(None, **settings)  # type: ignore[arg-type]


# -- the lock -----------------------------------------------------------------------------------


async def test_a_lock_that_is_held_too_long_names_its_holder(path: Path) -> None:
    backend = SqliteBackend(path, lock_wait=0.05)
    await backend.publish(numbered(1))
    lock = FileLock(path.with_name("omni.db.lock"))
    lock.acquire(1)
    for _ in range(3):
        with pytest.raises(BackendBusy, match=f"by process {os.getpid()}; nothing was written"):
            await backend.publish(numbered(1))
    assert await length(backend) == 1, "reading needs no lock"
    lock.release()
    with trio.fail_after(LIMIT):
        while True:  # those who gave up hand the lock on when they get it
            try:
                await backend.publish(numbered(1))
            except BackendBusy:
                continue
            break
    assert await length(backend) == 2
    lock.acquire(1)
    lock.release()
    lock.close()
    await backend.close()


async def test_who_waits_gets_the_lock_when_it_is_free(path: Path) -> None:
    backend = SqliteBackend(path)
    lock = FileLock(path.with_name("omni.db.lock"))
    lock.acquire(1)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.publish, numbered(3))
            await trio.sleep(0.05)
            assert not path.exists()
            lock.release()
        assert await length(backend) == 3
    lock.close()
    await backend.close()


async def test_serve_ends_although_the_lock_is_held_and_its_work_is_not_lost(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend, other = SqliteBackend(path, lock_wait=0.05), SqliteBackend(path)
    await backend.publish(numbered(2))
    lock = FileLock(path.with_name("omni.db.lock"))
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(backend.serve)
            await fetch(backend)
            lock.acquire(1)
            nursery.cancel_scope.cancel()
        lock.close()
        assert "left its work" in caplog.text
        async with serving(other):
            entries = (await fetch_when_due(other)).entries
    assert numbers(entries) == [0, 1]
    await backend.close()
    await other.close()


# -- runs, threads, clocks ----------------------------------------------------------------------


def test_one_backend_works_in_several_runs_and_threads(path: Path) -> None:
    backend = SqliteBackend(path)

    def publish_some(name: str) -> None:
        async def main() -> None:
            for number in range(20):
                await backend.publish([event(f"{name}-{number}")])

        trio.run(main)

    publish_some("first")
    threads = [threading.Thread(target=publish_some, args=(f"thread-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)

    async def count() -> int:
        try:
            return await length(backend)
        finally:
            await backend.close()

    assert trio.run(count) == 100


def test_a_run_that_crashed_does_no_harm(path: Path) -> None:
    backend = SqliteBackend(path)

    async def crash() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(backend.serve)
            nursery.start_soon(backend.wait, {TOPIC: 2**63})
            nursery.start_soon(backend.publish, numbered(3))
            await trio.testing.wait_all_tasks_blocked()
            raise KeyError

    async def again() -> list[int]:
        async with serving(backend):
            found = numbers(await fetch(backend))
        await backend.close()
        return found

    with pytest.raises(ExceptionGroup):
        trio.run(crash)
    assert trio.run(again) in ([], [0, 1, 2])


async def test_virtual_time_does_not_cut_calls_short(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    backend = SqliteBackend(path)
    async with serving(backend):
        await backend.publish(numbered(5))
        (entry, *_) = await fetch(backend)
        await backend.settle_many([Settlement(key=entry.key, result=record("t0"))])
        assert len(await backend.get_results("t0")) == 1
    await backend.close()


async def test_the_database_thread_gets_its_turn_beside_a_busy_loop(backend: SqliteBackend) -> None:
    async def burn() -> None:
        while True:
            end = time.perf_counter() + 0.003
            while time.perf_counter() < end:
                pass
            await trio.lowlevel.checkpoint()

    await backend.publish(numbered(1))
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(burn)
            for _ in range(20):
                await backend.publish(numbered(1))
            nursery.cancel_scope.cancel()


# -- the file over time -------------------------------------------------------------------------


async def test_a_file_that_is_removed_is_made_anew(
    backend: SqliteBackend, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await backend.publish(numbered(2))
    with trio.fail_after(LIMIT):
        async with serving(backend) as consumer:
            await backend.announce("http://127.0.0.1:1/")
            await backend.report([("t", "a")], {"b": "it broke"})
            (told,) = await backend.runtimes()
            await fetch(backend, 1)
            for file in (path, path.with_name("omni.db-wal"), path.with_name("omni.db-shm")):
                file.unlink()
            await until(path.exists)
            assert "what was in it is lost" in caplog.text
            await backend.publish([event("new", body=b'{"n":7}')])
            assert numbers(await fetch(backend)) == [7]
            (runtime,) = await backend.runtimes()
            assert runtime.consumer == consumer
            assert (runtime.gateway, runtime.groups, runtime.gave_up) == (told.gateway, told.groups, told.gave_up)


async def test_the_write_ahead_log_does_not_grow_for_ever(backend: SqliteBackend, path: Path) -> None:
    log = path.with_name("omni.db-wal")
    sizes = []
    for _ in range(6):
        for number in range(150):
            await backend.publish([event(str(number), body=b"x" * 2000)])
        sizes.append(log.stat().st_size)
    assert max(sizes) < 2 * max(sizes[:2])
    await backend.close()
    assert not log.exists()


async def test_what_has_expired_is_removed(path: Path) -> None:
    backend = SqliteBackend(path, dedupe_window=0.0)
    await backend.publish([event("a", dedupe=True)])
    async with serving(backend):
        (entry,) = await fetch(backend)
        await backend.settle_many([Settlement(key=entry.key, result=record("a"), result_ttl=0.0)])
        (fate,) = await backend.publish([event("a", topic="else", dedupe=True)])
        assert not fate.duplicate
        reader = sqlite3.connect(path)
        rows = "SELECT (SELECT count(*) FROM result) + (SELECT count(*) FROM dedupe)"
        await until(lambda: reader.execute(rows).fetchone() == (0,))
        reader.close()
    await backend.close()


async def test_pages_that_are_free_go_back_to_the_file_system(backend: SqliteBackend, path: Path) -> None:
    bulk = [Publication(topic=TOPIC, task_id=str(number), body=b"x" * 100_000) for number in range(150)]
    await backend.publish(bulk)
    async with serving(backend):
        entries = await fetch(backend, 1000)
        assert all(await backend.settle_many([Settlement(key=entry.key) for entry in entries]))
        reader = sqlite3.connect(path)
        before = reader.execute("PRAGMA page_count").fetchone()[0]
        await until(lambda: reader.execute("PRAGMA page_count").fetchone()[0] < before)
        reader.close()


async def test_a_text_that_is_none_does_not_hold_up_the_others(backend: SqliteBackend, path: Path) -> None:
    await backend.publish(numbered(3))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE entry SET body = CAST(x'ff22' AS TEXT) WHERE id = (SELECT min(id) FROM entry)")
    connection.commit()
    connection.close()
    async with serving(backend):
        broken, *others = await fetch(backend)
    assert broken.body == b'\xff"'
    assert numbers(others) == [1, 2]


async def test_results_with_odd_ids_are_found_again(backend: SqliteBackend) -> None:
    odd = ["\0", "a\0b", "a\0c", "\udc80", "🐍", '"', "x" * 10_000]
    await backend.publish([event(task_id, dedupe=True) for task_id in odd])
    async with serving(backend):
        entries = await fetch(backend)
        assert len(entries) == len(odd)
        settlements = [
            Settlement(key=entry.key, result=record(task_id.replace("\udc80", "?"), result=task_id == "a\0b"))
            for entry, task_id in zip(entries, odd, strict=True)
        ]
        assert all(await backend.settle_many(settlements))
        assert [result.result for result in await backend.get_results("a\0b")] == [True]
        assert [result.result for result in await backend.get_results("a\0c")] == [False]
    repeats = await backend.publish([event(task_id, dedupe=True) for task_id in odd])
    assert all(fate.duplicate for fate in repeats)


async def test_a_want_for_an_unknown_group_makes_it(backend: SqliteBackend) -> None:
    async with serving(backend):
        assert (await backend.fetch([Want(TOPIC, AGENT, 1)])).entries == []
        (stream,) = await backend.streams()
    assert [group.agent for group in stream.groups] == [AGENT]


def test_the_location_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert SqliteBackend(tmp_path.relative_to(tmp_path) / "a.db").location == f"sqlite:///{tmp_path}/a.db"
    assert SqliteBackend(None).location == "memory://"


async def test_an_error_says_that_nothing_else_is_known(backend: SqliteBackend) -> None:
    with pytest.raises(BackendError) as caught:
        await backend.publish([Publication(topic=TOPIC, task_id="a", body=5)])  # type: ignore[arg-type]
    assert caught.value.outcome_known
