"""Probes note what they get, reply as told, and say what came instead of what was expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from omniactors import ActorRef, AskFailed, UnhandledMessage, open_supervisor
from omniactors.testing import Notices, start_probe, wait_idle
from tests.testing.support import Add, AddTwice, Counter, Nap, Total

if TYPE_CHECKING:
    from trio.testing import MockClock


async def test_messages_are_expected_in_order_by_type_or_value(autojump_clock: MockClock) -> None:
    async with open_supervisor() as sup:
        probe = await start_probe(sup)
        assert isinstance(probe.ref, ActorRef)
        await probe.ref.tell(Add(1))
        await probe.ref.tell(AddTwice(2))
        assert await probe.expect(Add(1)) == Add(1)
        assert (await probe.expect(Add)).amount == 2
        assert probe.received == [Add(1), AddTwice(2)]
        assert repr(probe) == "<Probe supervisor/Probe-1, 2 received, 2 of them expected>"


async def test_an_expected_message_is_waited_for(autojump_clock: MockClock) -> None:
    async def later(ref: ActorRef[Add]) -> None:
        await trio.sleep(2)
        await ref.tell(Add(7))

    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        probe = await start_probe(sup, name="mailer")
        nursery.start_soon(later, probe.ref)
        assert await probe.expect(Add) == Add(7)
        assert trio.current_time() == 2


async def test_a_wrong_message_shows_what_came(autojump_clock: MockClock) -> None:
    async with open_supervisor() as sup:
        probe = await start_probe(sup, name="mailer")
        await probe.ref.tell(Add(1))
        await probe.ref.tell(Add(2))
        await probe.expect(Add)
        with pytest.raises(AssertionError) as raised:
            await probe.expect(Total)
        assert str(raised.value) == (
            "supervisor/mailer: expected Total, but got Add(amount=2); received:"
            "\n  1. Add(amount=1) (expected)\n  2. Add(amount=2)"
        )
        with pytest.raises(AssertionError, match=r"expected Add\(amount=3\), but got Add\(amount=2\)"):
            await probe.expect(Add(3))
        assert await probe.expect(Add(2)) == Add(2)


async def test_nothing_is_said_too(autojump_clock: MockClock) -> None:
    async with open_supervisor() as sup:
        probe = await start_probe(sup)
        with pytest.raises(AssertionError, match="expected Add, but nothing came within 3 s; received: nothing"):
            await probe.expect(Add)
        assert trio.current_time() == 3
        with pytest.raises(AssertionError, match="within 100 s"):
            await probe.expect(Add, within=100)


async def test_silence_is_expected_for_its_whole_time(autojump_clock: MockClock) -> None:
    async def later(ref: ActorRef[Add]) -> None:
        await trio.sleep(4)
        await ref.tell(Add(7))

    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        probe = await start_probe(sup)
        nursery.start_soon(later, probe.ref)
        await probe.expect_no_message(3)
        assert trio.current_time() == 3
        with pytest.raises(AssertionError, match=r"no message for 3 s, but got Add\(amount=7\) after 1 s"):
            await probe.expect_no_message(3)
        with pytest.raises(AssertionError, match="after 0 s"):
            await probe.expect_no_message(0)
        await probe.expect(Add)
        await probe.expect_no_message(0)


async def test_asks_are_replied_to_by_type() -> None:
    async with open_supervisor() as sup:
        probe = await start_probe(sup)
        silence: object = await probe.ref.ask(Add())
        assert silence is None
        probe.reply_with(1)
        probe.reply_with(42, to=Total)
        assert await probe.ref.ask(Total()) == 42
        assert await probe.ref.ask(Add()) == 1
        probe.reply_with(43, to=Total)
        assert await probe.ref.ask(Total()) == 43


async def test_an_answer_may_wait_or_raise_and_the_probe_outlives_it(autojump_clock: MockClock) -> None:
    async def answer(message: Nap) -> float:
        await trio.sleep(message.seconds)
        if message.seconds > 5:
            raise OSError("too long")
        return message.seconds

    async with open_supervisor() as sup:
        probe = await start_probe(sup)
        probe.answer_by(answer, to=Nap)
        assert await probe.ref.ask(Nap(2)) == 2
        with pytest.raises(AskFailed) as raised:
            await probe.ref.ask(Nap(6))
        assert isinstance(raised.value.__cause__, OSError)
        await wait_idle(sup)
        assert probe.ref.incarnation == 2
        assert await probe.ref.ask(Nap(1)) == 1
        assert probe.received == [Nap(2), Nap(6), Nap(1)]


async def test_a_probe_takes_what_it_was_made_for() -> None:
    notices = Notices()
    async with open_supervisor(emit=notices) as sup:
        like_counter = await start_probe(sup, Counter)
        for message in (Add(), AddTwice(), Total()):
            await like_counter.ref.tell(message)
        only_totals = await start_probe(sup, Total, str)
        await only_totals.ref.tell("text")
        for probe in (like_counter, only_totals):
            with pytest.raises(UnhandledMessage):
                await probe.ref.tell(1.5)
        with pytest.raises(UnhandledMessage):
            await only_totals.ref.tell(Add())
        await wait_idle(sup)
        assert len(like_counter.received) == 3
    notices.check()
