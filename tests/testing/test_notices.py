"""`Notices` finds what was expected, and tells of the trouble that was not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from omniactors import (
    ChildExited,
    ChildSpec,
    ChildStarted,
    ChildStartError,
    ChildStartFailed,
    ChildStopped,
    ExitReason,
    GaveUp,
    Intensity,
    MessagesLost,
    SupervisorGaveUp,
    open_supervisor,
    subtree,
)
from omniactors.testing import Crash, FaultPlan, Hang, Notices, at_message, at_start, faulty, wait_idle
from tests.testing.support import Add, Boom, Counter, actor

if TYPE_CHECKING:
    from trio.testing import MockClock


async def test_an_expected_notice_is_found_or_waited_for(autojump_clock: MockClock) -> None:
    notices = Notices()
    async with open_supervisor(Counter, subtree(Counter, name="inner"), emit=notices) as sup:
        assert (await notices.expect(ChildStarted)).path == "supervisor/Counter-1"
        inner = await notices.expect(ChildStarted, path="inner/Counter-1")
        assert inner.path == "supervisor/inner/Counter-1"
        actor(sup, "Counter-1").tell_nowait(Boom())
        exited = await notices.expect(ChildExited, path="supervisor/Counter-1")
        assert exited.reason.matches(ValueError)
        again = await notices.expect(ChildStarted, path="Counter-1", where=lambda notice: notice.incarnation == 2)
        assert again.incarnation == 2
        assert len(notices.of(ChildStarted)) == 4
        assert [one.incarnation for one in notices.of(ChildStarted, path="supervisor/Counter-1")] == [1, 2]
    notices.check()


async def test_each_notice_is_expected_once(autojump_clock: MockClock) -> None:
    notices = Notices()
    async with open_supervisor(Counter, emit=notices):
        await notices.expect(ChildStarted)
        with pytest.raises(AssertionError, match=r"expected ChildStarted, but none came within 3 s; so far:\n  Child"):
            await notices.expect(ChildStarted)
        assert trio.current_time() == 3
        with pytest.raises(AssertionError, match=r"expected ChildExited of unter-1, but none came within 0 s"):
            await notices.expect(ChildExited, path="unter-1", within=0)


async def test_a_crash_that_nobody_expected_is_trouble(autojump_clock: MockClock) -> None:
    notices = Notices()
    async with open_supervisor(Counter, emit=notices) as sup:
        for _ in range(2):
            actor(sup, "Counter-1").tell_nowait(Boom())
        await wait_idle(sup)
        await notices.expect(ChildExited)
        with pytest.raises(AssertionError, match=r"nobody expected:\n  ChildExited\(path='supervisor/Counter-1', inc"):
            notices.check()
        notices.allow(ChildExited)
        notices.check()


async def test_lost_messages_are_trouble(autojump_clock: MockClock) -> None:
    notices = Notices()
    hang = Hang()
    async with open_supervisor(
        ChildSpec(faulty(Counter, FaultPlan(at_message(hang))), shutdown=1), emit=notices
    ) as sup:
        for _ in range(3):
            actor(sup, "Counter-1").tell_nowait(Add())
        await hang.entered.wait()
    with pytest.raises(AssertionError, match=r"MessagesLost\(path='supervisor/Counter-1', count=2\)"):
        notices.check()
    assert (await notices.expect(MessagesLost)).count == 2
    notices.check()


async def test_a_failed_start_is_trouble() -> None:
    notices = Notices()
    with pytest.raises(ChildStartError):
        async with open_supervisor(faulty(Counter, FaultPlan(at_start(Crash()))), emit=notices):
            pass
    with pytest.raises(AssertionError, match="ChildStartFailed"):
        notices.check()
    await notices.expect(ChildStartFailed)
    notices.check()


async def test_giving_up_is_trouble() -> None:
    async def give_up() -> None:
        async with open_supervisor(Counter, intensity=Intensity(0, 1), emit=notices) as sup:
            actor(sup, "Counter-1").tell_nowait(Boom())
            await trio.sleep_forever()

    notices = Notices()
    with pytest.raises(GaveUp):
        await give_up()
    notices.allow(ChildExited)
    with pytest.raises(AssertionError, match="SupervisorGaveUp"):
        notices.check()
    await notices.expect(SupervisorGaveUp)
    notices.check()


def test_an_orderly_stop_is_no_trouble_and_a_crash_at_it_is() -> None:
    notices = Notices()
    for reason in (ExitReason.NORMAL, ExitReason.SHUTDOWN, ExitReason.KILLED):
        notices(ChildStopped("a", 1, reason))
    notices.check()
    notices(ChildStopped("a", 1, ExitReason.crash(ValueError())))
    with pytest.raises(AssertionError, match="ChildStopped"):
        notices.check()
