"""What delays, retries and times mean when the clock is set, the machine sleeps, or is started anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from omniactors.streams.backend import Want
from omniactors.streams.settlement import Retry
from omniactors.streams.sqlite.backend import SqliteBackend
from omniactors.streams.sqlite.steadiness import Uptime, system_uptime
from tests.streams.contract_kit import AGENT, LIMIT, TOPIC, done, event, fetch, numbered, numbers, serving

if TYPE_CHECKING:
    from pathlib import Path

HOUR = 3600.0


class Machine:
    """A wall clock that can be set, and an uptime."""

    def __init__(self) -> None:
        self.wall = 1_800_000_000.0
        self.on = 1000.0
        self.start = "first"

    def store(self, path: Path) -> SqliteBackend:
        return SqliteBackend(path, clock=lambda: self.wall, uptime=Uptime(self.start, lambda: self.on))

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.on += seconds


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "omni.db"


async def wait_for_retry(backend: SqliteBackend, after: float) -> None:
    (entry,) = await fetch(backend)
    assert await backend.settle_many([done(entry, retry=Retry(after=after, attempts=1))]) == [True]


@pytest.mark.parametrize("step", [-HOUR, HOUR, -40 * 365 * 24 * HOUR])
async def test_a_retry_comes_after_its_delay_however_the_clock_is_set(
    machine: Machine, path: Path, step: float
) -> None:
    backend = machine.store(path)
    await backend.publish(numbered(1))
    async with serving(backend):
        await wait_for_retry(backend, 60)
        machine.pass_time(30)
        machine.wall += step
        assert await fetch(backend) == []
        due = (await backend.fetch([Want(TOPIC, AGENT, 1)])).next_due
        assert due == pytest.approx(30, abs=0.1)
        machine.pass_time(31)
        assert numbers(await fetch(backend)) == [0]
    await backend.close()


@pytest.mark.parametrize("step", [-HOUR, HOUR])
async def test_a_delayed_event_keeps_its_delay_and_one_for_a_time_its_time(
    machine: Machine, path: Path, step: float
) -> None:
    backend = machine.store(path)
    delayed = msgspec.structs.replace(event("a", body=b'{"n":1}'), delay=60.0)
    timed = msgspec.structs.replace(event("b", body=b'{"n":2}'), at=machine.wall + 60.0)
    await backend.publish([delayed, timed])
    async with serving(backend):
        machine.wall += step
        machine.pass_time(30)
        assert numbers(await fetch(backend)) == ([2] if step > 0 else [])
        machine.pass_time(31)
        assert numbers(await fetch(backend)) == [1]
        machine.pass_time(HOUR)
        assert numbers(await fetch(backend)) == ([] if step > 0 else [2])
    await backend.close()


async def test_two_processes_move_what_waits_once(machine: Machine, path: Path) -> None:
    one, other = machine.store(path), machine.store(path)
    await one.publish(numbered(2))
    async with serving(one), serving(other):
        (entry,) = await fetch(one, 1)
        await one.settle_many([done(entry, retry=Retry(after=60, attempts=1))])
        machine.wall -= HOUR
        for backend in (one, other, one, other):
            assert numbers(await fetch(backend)) in ([1], [])
        machine.pass_time(59)
        assert await fetch(other) == []
        machine.pass_time(2)
        assert numbers(await fetch(other)) == [0]
    await one.close()
    await other.close()


async def test_after_a_new_start_of_the_machine_the_wall_clock_counts(machine: Machine, path: Path) -> None:
    backend = machine.store(path)
    await backend.publish(numbered(1))
    async with serving(backend):
        await wait_for_retry(backend, HOUR)
    await backend.close()
    machine.wall += 2 * HOUR
    machine.on, machine.start = 5.0, "second"
    backend = machine.store(path)
    async with serving(backend):
        assert numbers(await fetch(backend)) == [0]
    await backend.close()


@pytest.mark.parametrize("kind", ["the machine slept", "the clock was set forward"])
async def test_who_waits_is_woken_when_the_clock_jumped(machine: Machine, path: Path, kind: str) -> None:
    """The time until something is due was told as a length; it is told anew."""
    backend = machine.store(path)
    await backend.publish([msgspec.structs.replace(event("b", body=b'{"n":2}'), at=machine.wall + HOUR)])
    with trio.fail_after(LIMIT):
        async with serving(backend):
            fetched = await backend.fetch([Want(TOPIC, AGENT, 1)])
            assert fetched.next_due == pytest.approx(HOUR)
            if kind == "the machine slept":
                machine.pass_time(2 * HOUR)
            else:
                machine.wall += 2 * HOUR
            assert await backend.wait({TOPIC: fetched.position}) == {TOPIC}
            assert numbers(await fetch(backend)) == [2]
    await backend.close()


async def test_retries_are_woken_after_a_sleep(machine: Machine, path: Path) -> None:
    backend = machine.store(path)
    await backend.publish(numbered(1))
    with trio.fail_after(LIMIT):
        async with serving(backend):
            await wait_for_retry(backend, HOUR)
            fetched = await backend.fetch([Want(TOPIC, AGENT, 1)])
            machine.pass_time(2 * HOUR)
            await backend.wait({TOPIC: fetched.position})
            assert numbers(await fetch(backend)) == [0]
    await backend.close()


def test_this_machine_has_an_uptime_that_all_its_processes_share() -> None:
    uptime = system_uptime()
    if uptime is not None:
        again = system_uptime()
        assert again is not None
        assert again.beginning == uptime.beginning
        assert uptime.seconds() <= again.seconds()
