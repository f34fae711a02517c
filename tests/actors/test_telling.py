"""What a tree says when nobody watches it, and what callbacks that fail change: nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import Backoff, ChildSpec, DynamicSupervisor, GaveUp, Intensity, open_supervisor, subtree
from omniactors.actors.telling import BURST
from tests.actors.support import Boom, Counter, Total

if TYPE_CHECKING:
    from trio.testing import MockClock

    from omniactors import ExitReason

LOG = "omniactors.supervision"


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOG and record.levelno == level]


async def crash(counter: Any) -> None:
    await counter.tell(Boom())
    assert await counter.ask(Total()) == 0


async def test_crashes_and_restarts_are_logged_with_the_users_own_frames(caplog: pytest.LogCaptureFixture) -> None:
    async with open_supervisor(subtree(Counter, name="inner"), name="app") as sup:
        await crash(sup.child("inner").value.child("Counter-1"))
    crashed, restarted = lines(caplog, logging.WARNING)
    assert crashed.startswith("app/inner/Counter-1 (incarnation 1): crash: ValueError('boom')")
    assert "support.py" in crashed
    assert "/omniactors/actors/" not in crashed
    assert "/trio/" not in crashed
    assert restarted == "app/inner/Counter-1 is started again at once (1 in this period)"
    assert lines(caplog, logging.ERROR) == []


async def test_giving_up_is_an_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise ValueError("a bug")

    with pytest.raises(GaveUp):
        async with open_supervisor(broken, intensity=Intensity(1)):
            await trio.sleep_forever()
    assert len(lines(caplog, logging.WARNING)) == 3
    assert lines(caplog, logging.ERROR) == [
        "supervisor gives up on child 'broken-1' and ends: crash: ValueError('a bug')"
    ]


async def test_a_restart_that_fails_is_logged(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    starts = [True, False, True]

    class Flaky(Counter):
        async def on_start(self) -> None:
            if not starts.pop(0):
                raise OSError("not yet")

    async with open_supervisor(Flaky, backoff=Backoff(initial=2, jitter=0)) as sup:
        await crash(sup.child("Flaky-1"))
    told = [line.splitlines()[0] for line in lines(caplog, logging.WARNING)]
    assert told[1] == "supervisor/Flaky-1 is started again in 2 s (1 in this period)"
    assert told[2] == "supervisor/Flaky-1 did not start: crash: OSError('not yet')"
    assert told[3] == "supervisor/Flaky-1 is started again in 4 s (2 in this period)"


async def test_a_storm_of_restarts_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with DynamicSupervisor(intensity=Intensity(10_000)) as sup:
        counter = await sup.start_child(Counter)
        for _ in range(100):
            await crash(counter)
    told = lines(caplog, logging.WARNING)
    assert len(told) == 2 * BURST + 2
    assert told[-2:] == [
        f"dynamic: {100 - BURST} more crashes were left out here",
        f"dynamic: {100 - BURST} more restarts were left out here",
    ]


async def test_a_huge_error_does_not_fill_the_log_or_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise ValueError("x" * 10_000_000)

    async with open_supervisor() as sup:
        child = await sup.start_child(ChildSpec(broken, restart="temporary"))
        await child.wait_stopped()
    assert sum(map(len, lines(caplog, logging.WARNING))) < 50_000


async def test_with_emit_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    notices: list[object] = []
    async with open_supervisor(Counter, emit=notices.append) as sup:
        await crash(sup.child("Counter-1"))
    assert [type(notice).__name__ for notice in notices][:3] == ["ChildStarted", "ChildExited", "ChildRestartScheduled"]
    assert [record for record in caplog.records if record.name == LOG] == []


class OtherError(BaseException):
    """No Exception."""


@pytest.mark.parametrize("error", [ValueError("a bug"), asyncio.CancelledError(), OtherError(), RecursionError()])
async def test_an_emit_that_raises_changes_nothing(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    def emit(_notice: object) -> None:
        raise error

    async with open_supervisor(subtree(Counter, name="t"), Counter, emit=emit) as sup:
        for counter in (sup.child("Counter-1"), sup.child("t").value.child("Counter-1")):
            await crash(counter)
        late = await sup.start_child(Counter)
        await late.stop()
        sup.report()
        assert sup.count_children().active == 2
    told = lines(caplog, logging.ERROR)
    assert told[0].startswith(f"emit raised {error!r} for ChildStarted")
    assert len(told) <= 2 * BURST + 2


async def test_callbacks_at_the_end_of_a_child_that_raise_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def told(_reason: ExitReason) -> None:
        raise ValueError("a bug in a callback")

    async def child(*, task_status: Any) -> None:
        task_status.on_stop = told  # takes an argument that it does not get
        task_status.started()
        await trio.sleep_forever()

    async with open_supervisor(Counter, child) as sup:
        counter, function = sup.child("Counter-1"), sup.child("child-1")
        counter.call_at_end(told)
        counter.call_at_end(lambda reason: heard.append(reason.kind))
        await crash(counter)
        await function.stop()
        assert (function.status, counter.status) == ("stopped", "running")
    assert heard == ["crash"]
    assert len(lines(caplog, logging.ERROR)) == 2


class UnprintableError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


async def test_an_error_that_cannot_be_printed_is_a_crash_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise UnprintableError

    with pytest.raises(GaveUp) as caught:
        async with open_supervisor(ChildSpec(broken, id="a"), intensity=Intensity(1)):
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, UnprintableError)
    assert "UnprintableError, whose repr raised RuntimeError" in lines(caplog, logging.ERROR)[0]


async def test_a_backoff_of_ones_own_that_raises_is_no_backoff(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Backoff):
        def delay(self, attempt: int, random: float) -> float:
            raise ZeroDivisionError

    async with open_supervisor(Counter, backoff=Broken()) as sup:
        await crash(sup.child("Counter-1"))
        assert sup.child("Counter-1").incarnation == 2
    assert "ZeroDivisionError" in caplog.text
