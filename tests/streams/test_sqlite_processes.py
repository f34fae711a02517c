"""Several processes on one file: killed, forked, forgetful and busy ones."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from omniactors.streams.backend import Entry, Want
from omniactors.streams.sqlite import operations
from omniactors.streams.sqlite.backend import SqliteBackend
from tests.streams.contract_kit import fetch, fetch_when_due, length, serving, until
from tests.streams.processes import AGENT, DONE, STOP, TOPIC, event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and fork are those of POSIX")

LIMIT = 60.0
"""Seconds of real time for one test."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "omni.db"


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend(path)
    with trio.fail_after(LIMIT):
        yield backend
    await backend.close()


class Process:
    """One of `tests.streams.processes`; its output goes to a file, which outlives it."""

    def __init__(self, process: trio.Process, output: Path) -> None:
        self.process = process
        self._output = output

    def lines(self) -> list[str]:
        """The whole lines that it has written."""
        return self._output.read_text().split("\n")[:-1]

    async def has_spoken(self, lines: int = 1) -> None:
        await until(lambda: len(self.lines()) >= lines)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def running(role: str, path: Path, name: str = "") -> AsyncIterator[Process]:
    """A process that is killed at the end of the block, if it still runs."""
    output = path.with_name(f"{role}-{name or time.monotonic_ns()}.out")
    with output.open("wb") as stdout:
        command = [sys.executable, "-m", "tests.streams.processes", role, str(path), name]
        process = await trio.lowlevel.open_process(command, stdout=stdout)
    try:
        yield Process(process, output)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def ids(entries: list[Entry]) -> list[str]:
    return [msgspec.json.decode(entry.body) for entry in entries]


def check_integrity(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    # What is counted on the way is what there is.
    wrong = """
        SELECT topic FROM stream WHERE length <> (SELECT count(*) FROM entry WHERE entry.topic = stream.topic)
            + (SELECT count(*) FROM scheduled WHERE scheduled.topic = stream.topic)
        UNION ALL SELECT topic FROM entry WHERE topic NOT IN (SELECT topic FROM stream)
        UNION ALL SELECT agent FROM grp WHERE owned <> (
            SELECT count(*) FROM pending WHERE pending.grp = grp.id AND consumer IS NOT NULL)
    """
    assert connection.execute(wrong).fetchall() == []
    connection.close()


async def test_killed_publishers_lose_nothing_that_was_acknowledged(backend: SqliteBackend, path: Path) -> None:
    chance = random.Random(20261121)
    await backend.create_groups([(TOPIC, AGENT)])
    acknowledged: list[str] = []

    async def publish_and_die(name: str) -> None:
        async with running("publish", path, name) as publisher:
            await publisher.has_spoken()
            await trio.sleep(chance.uniform(0, 0.2))
            await publisher.kill()
            acknowledged.extend(publisher.lines())

    async with running("consume", path) as consumer:
        for round_number in range(6):
            async with trio.open_nursery() as nursery:
                for publisher in "ab":
                    nursery.start_soon(publish_and_die, f"{round_number}{publisher}")
        await backend.publish([event("stop", STOP)])
        assert await consumer.process.wait() == 0
        consumed = consumer.lines()
    async with serving(backend):
        left = ids(await fetch(backend, 10**6))
    found = [*consumed, *left]
    assert len(acknowledged) > 12
    assert len(found) == len(set(found)), "an event was delivered twice"
    assert set(acknowledged) <= set(found), "an acknowledged event is lost"
    assert len(set(found) - set(acknowledged)) <= 2 * 12, "more is there than was under way"
    check_integrity(path)


async def test_killed_consumers_do_not_break_the_order_of_a_key(backend: SqliteBackend, path: Path) -> None:
    keys, each = 6, 60
    await backend.publish([event(f"{number % keys}-{number // keys}") for number in range(keys * each)])

    async def has_settled(count: int) -> None:
        while await length(backend, DONE) < count:  # noqa: ASYNC110 -- a look must not take part in the work
            await trio.sleep(0.005)

    async with AsyncExitStack() as stack:
        for _ in range(2):
            await (await stack.enter_async_context(running("keep_order", path))).has_spoken()
        for number in range(1, 4):
            async with running("keep_order", path) as killed:
                await killed.has_spoken()
                await has_settled(number * keys * each // 5)
                await killed.kill()
        await has_settled(keys * each)
    async with serving(backend):
        found = [name.split("-") for name in ids(await fetch(backend, 1000, topic=DONE))]
    for key in range(keys):
        assert [int(number) for of, number in found if of == str(key)] == list(range(each))
    check_integrity(path)


async def test_the_work_of_a_killed_consumer_is_taken_over_at_once(backend: SqliteBackend, path: Path) -> None:
    await backend.publish([event(str(number)) for number in range(20)])
    async with serving(backend), running("hold", path) as holder:
        await holder.has_spoken(lines=20)
        assert (await backend.fetch([Want(TOPIC, AGENT, 100)])).entries == []
        assert len(await backend.runtimes()) == 2
        await holder.kill()
        assert len(await backend.runtimes()) == 1
        killed = time.monotonic()
        entries = (await fetch_when_due(backend)).entries
        assert time.monotonic() - killed < 3
        assert ids(entries) == [str(number) for number in range(20)]
        assert [entry.attempts for entry in entries] == [0] * 20
        # Only what had begun counts, and of that what was not done.
        assert [entry.crashes for entry in entries] == [0, 1, 1, *[0] * 17]
    assert list((path.parent / "omni.db.consumers").iterdir()) == []


async def test_a_lease_that_cannot_be_read_keeps_nobody_from_the_others(
    backend: SqliteBackend, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is one of another user, or none at all."""
    await backend.publish([event(str(number)) for number in range(20)])
    async with serving(backend), running("hold", path) as holder:
        await holder.has_spoken(lines=20)
        strange = path.parent / "omni.db.consumers" / "1-strange"
        strange.mkdir()
        with closing(sqlite3.connect(path)) as connection, connection:
            for consumer, gave_up in (("1-strange", "{}"), ("2-broken", "no JSON")):
                connection.execute(
                    "INSERT INTO consumer (id, pid, host, started_at, gave_up) VALUES (?, 1, 'h', 0, ?)",
                    (consumer, gave_up),
                )
        await holder.kill()
        assert len((await fetch_when_due(backend)).entries) == 20
        await trio.sleep(2.5)  # two more rounds of maintenance
        runtimes = {runtime.consumer for runtime in await backend.runtimes()}
        assert "1-strange" in runtimes, "who cannot be judged counts as alive"
        assert "2-broken" not in runtimes
    assert caplog.text.count("whether consumer 1-strange lives cannot be told") == 1


async def test_a_takeover_that_fails_midway_is_made_again_and_knows_what_had_begun(
    backend: SqliteBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.publish([event(str(number)) for number in range(20)])
    remove, failures = operations.remove_consumer, [OSError("the disk is away")]

    def failing(*arguments: Any, **keywords: Any) -> None:
        remove(*arguments, **keywords)
        if failures:
            raise failures.pop()

    async with serving(backend), running("hold", path) as holder:
        await holder.has_spoken(lines=20)
        monkeypatch.setattr(operations, "remove_consumer", failing)
        await holder.kill()
        entries = (await fetch_when_due(backend)).entries
        assert failures == []
        assert [entry.crashes for entry in entries] == [0, 1, 1, *[0] * 17]


async def test_a_lease_does_not_outlive_its_process_in_a_forked_child(backend: SqliteBackend, path: Path) -> None:
    await backend.publish([event("a")])
    async with serving(backend), running("fork", path) as forking:
        await forking.has_spoken()
        child = int(forking.lines()[0])
        try:
            await forking.kill()
            assert ids((await fetch_when_due(backend)).entries) == ["a"]
        finally:
            os.kill(child, signal.SIGKILL)


async def test_a_forked_child_begins_anew(backend: SqliteBackend, path: Path) -> None:
    async with running("publish_in_child", path) as process:
        assert await process.process.wait() == 0
        assert process.lines() == ["child ended with 0"]
    async with serving(backend):
        found = ids(await fetch(backend))
    assert sorted(found) == ["child", "parent-1", "parent-2"]
    check_integrity(path)


async def test_a_script_that_closes_nothing_ends_at_once_and_its_events_are_durable(
    backend: SqliteBackend, path: Path
) -> None:
    async with running("forget", path) as process:
        await process.has_spoken()
        published = time.monotonic()
        assert await process.process.wait() == 0
        assert time.monotonic() - published < 2
    # The log was copied into the file and emptied: the end was an orderly one.
    assert not path.with_name("omni.db-wal").exists()
    assert await length(backend) == 10


async def test_a_publisher_beside_a_busy_runner_is_not_starved(backend: SqliteBackend, path: Path) -> None:
    waits = []
    async with running("keep_busy", path) as busy:
        await busy.has_spoken()
        for number in range(200):
            began = time.monotonic()
            await backend.publish([event(str(number))])
            waits.append(time.monotonic() - began)
        assert busy.process.poll() is None
    assert max(waits) < 2
    assert await length(backend) == 200


async def test_a_write_that_fails_loses_nothing_and_the_next_may_succeed(backend: SqliteBackend, path: Path) -> None:
    async with running("fill", path) as process:
        assert await process.process.wait() == 0
        *written, failure, last = process.lines()
    assert failure.startswith(f"BackendError {path} ")
    assert last == "published again"
    assert 0 < len(written) < 11
    assert await length(backend, "big") == len(written)
    assert await length(backend) == 2
    check_integrity(path)
