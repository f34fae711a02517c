"""Ask and tell: what arrives, in which order, and that every ask ends."""

from __future__ import annotations

import gc
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from omniactors import (
    Actor,
    ActorRef,
    ActorStopped,
    AskFailed,
    Backoff,
    ChildSpec,
    GaveUp,
    Intensity,
    Mailbox,
    MailboxFull,
    MessagesLost,
    Request,
    UnhandledMessage,
    on,
    open_supervisor,
)
from tests.actors.support import Add, Boom, Counter, Hold, Leave, Notices, Total

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock


async def hold(ref: ActorRef[Any]) -> trio.Event:
    """Keep the actor busy until the event that is returned is set."""
    gate, entered = trio.Event(), trio.Event()
    await ref.tell(Hold(gate, entered))
    await entered.wait()
    return gate


async def test_messages_of_one_sender_keep_their_order_and_one_is_handled_at_a_time() -> None:
    """A1, A2."""
    seen: list[int] = []

    class Slow(Actor[int]):
        is_busy = False

        @on
        async def take(self, number: int) -> None:
            assert not self.is_busy
            self.is_busy = True
            await trio.lowlevel.checkpoint()
            self.is_busy = False
            seen.append(number)

    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(Slow, mailbox=Mailbox(3)))
        for number in range(50):
            await ref.tell(number)
    assert seen == list(range(50))


async def test_ask_gives_what_the_handler_returns() -> None:
    async with open_supervisor() as sup:
        counter = await sup.start_child(Counter, 10)
        await counter.tell(Add(5))
        counter.tell_nowait(Add(1))
        assert await counter.ask(Total()) == 16


async def test_the_verbs_pass_checkpoints() -> None:
    """C12."""
    async with open_supervisor() as sup:
        counter = await sup.start_child(Counter)
        with assert_checkpoints():
            await counter.tell(Add())
        with assert_checkpoints():
            await counter.ask(Total())
        with assert_no_checkpoints():
            counter.tell_nowait(Add())
        with assert_checkpoints():
            await counter.stop()
        with assert_checkpoints():
            await counter.stop()
        with assert_checkpoints():
            await counter.wait_stopped()


async def test_a_handlers_error_reaches_the_asker_and_crashes_the_actor() -> None:
    """A6: the rest of the queue stays for the next incarnation."""
    async with open_supervisor() as sup:
        counter = await sup.start_child(Counter, 1)
        async with trio.open_nursery() as nursery:
            gate = await hold(counter)
            totals: list[int] = []

            async def ask_later() -> None:
                totals.append(await counter.ask(Total()))

            async def ask_boom() -> None:
                with pytest.raises(AskFailed) as caught:
                    await counter.ask(Boom())
                assert isinstance(caught.value.__cause__, ValueError)

            nursery.start_soon(ask_boom)
            await wait_all_tasks_blocked()
            counter.tell_nowait(Add(5))
            nursery.start_soon(ask_later)
            await wait_all_tasks_blocked()
            gate.set()
        assert totals == [6]
        assert counter.incarnation == 2


async def test_dead_letter_throws_the_queue_away_and_lets_waiting_senders_in() -> None:
    """A6, the other policy; a sender that waits for room is not forgotten with the queue."""
    notices = Notices()
    async with open_supervisor(emit=notices) as sup:
        counter = await sup.start_child(ChildSpec(Counter, mailbox=Mailbox(2), on_crash="dead_letter"))
        async with trio.open_nursery() as nursery:
            gate = await hold(counter)
            counter.tell_nowait(Boom())
            nursery.start_soon(counter.tell, Add(1))
            await wait_all_tasks_blocked()
            with pytest.raises(MailboxFull):
                counter.tell_nowait(Add(7))
            nursery.start_soon(counter.tell, Add(10))
            nursery.start_soon(counter.tell, Add(10))
            nursery.start_soon(counter.tell, Add(10))
            await wait_all_tasks_blocked()
            gate.set()
        assert await counter.ask(Total()) in (10, 20)  # one of three came in when Boom was taken
        lost = [notice.count for notice in notices.all if isinstance(notice, MessagesLost)]
        assert lost == [2]


async def test_an_ask_to_a_stopped_actor_fails_at_once_and_names_the_message() -> None:
    """A7, C1: the reference outlives the block and always answers."""
    async with open_supervisor() as sup:
        counter = await sup.start_child(Counter)
    message = Total()
    with pytest.raises(ActorStopped) as caught:
        await counter.ask(message)
    assert caught.value.message is message
    assert str(caught.value.reason) == "shutdown"
    with pytest.raises(ActorStopped):
        await counter.tell(Add())
    with pytest.raises(ActorStopped):
        counter.tell_nowait(Add())
    await counter.stop()
    await counter.stop_now()
    assert (counter.status, counter.incarnation, counter.value) == ("stopped", 1, None)
    assert (await counter.wait_stopped()).kind == "shutdown"


async def test_the_actor_object_does_not_outlive_its_task() -> None:
    """C1: references are cheap to keep."""
    made: list[weakref.ref[Counter]] = []

    class Watched(Counter):
        def __init__(self) -> None:
            super().__init__()
            made.append(weakref.ref(self))

    async with open_supervisor() as sup:
        refs = [await sup.start_child(Watched) for _ in range(3)]
        await refs[0].tell(Leave())
        await refs[1].ask(Total())
    gc.collect()
    assert len(made) >= 3
    assert not any(ref() for ref in made)
    assert refs


async def test_queued_asks_fail_when_the_target_ends_for_good(autojump_clock: MockClock) -> None:
    """A4: stopped, killed and given up."""
    outcomes: list[str] = []
    for ending in ("stop", "stop_now", "crash"):
        with trio.move_on_after(100):
            try:
                async with open_supervisor(intensity=Intensity(0, 5)) as sup, trio.open_nursery() as nursery:
                    counter = await sup.start_child(ChildSpec(Counter, shutdown=1))
                    gate = await hold(counter)
                    if ending == "crash":
                        counter.tell_nowait(Boom())

                    async def ask(ref: ActorRef[Any] = counter) -> None:
                        with trio.CancelScope(shield=True):
                            try:
                                await ref.ask(Total())
                            except ActorStopped:
                                outcomes.append("stopped")

                    nursery.start_soon(ask)
                    await wait_all_tasks_blocked()
                    if ending == "crash":
                        gate.set()
                        await trio.sleep_forever()
                    await getattr(counter, ending)()
            except* GaveUp:
                assert ending == "crash"
    assert outcomes == ["stopped"] * 3


async def test_an_ask_whose_handler_is_killed_fails(autojump_clock: MockClock) -> None:
    """A4: the handler of the ask is cancelled after the grace time."""
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        counter = await sup.start_child(Counter)
        failures: list[type[Exception]] = []

        async def ask() -> None:
            with pytest.raises(ActorStopped) as caught:
                await counter.ask(Hold(trio.Event(), trio.Event()))
            failures.append(caught.type)

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await counter.stop()
        assert trio.current_time() - began == 5
    assert failures == [ActorStopped]


async def test_an_ask_waits_over_a_restart_with_backoff(autojump_clock: MockClock) -> None:
    async with open_supervisor(backoff=Backoff(initial=10, jitter=0)) as sup:
        counter = await sup.start_child(Counter, 3)
        await counter.tell(Boom())
        await wait_all_tasks_blocked()
        assert counter.status == "restarting"
        assert await counter.ask(Total()) == 3
        assert trio.current_time() >= 10


async def test_a_cancelled_ask_is_withdrawn_while_it_is_queued(autojump_clock: MockClock) -> None:
    """C12: cancelled while queued, it did not happen."""
    async with open_supervisor() as sup:
        counter = await sup.start_child(ChildSpec(Counter, mailbox=Mailbox(1)))
        gate = await hold(counter)
        for _ in range(2):  # the second time it waits for room
            with trio.move_on_after(1) as scope:
                await counter.ask(Total())
            assert scope.cancelled_caught
            assert counter.statistics().queued == 0
        counter.tell_nowait(Add())
        with trio.move_on_after(1):
            await counter.tell(Add(100))
        assert not counter.statistics().waiting_senders
        gate.set()
        assert await counter.ask(Total()) == 1


async def test_a_late_reply_reaches_nobody(autojump_clock: MockClock) -> None:
    """A5."""

    class Echo(Actor[int]):
        @on
        async def echo(self, number: int) -> int:
            await trio.sleep(2)
            return number

    async with open_supervisor() as sup:
        echo = await sup.start_child(Echo)
        with trio.move_on_after(1):
            await echo.ask(1)
        assert await echo.ask(2) == 2


async def test_the_callers_deadline_travels_along(autojump_clock: MockClock) -> None:
    async with open_supervisor() as sup:
        counter = await sup.start_child(Counter)
        await hold(counter)
        with pytest.raises(trio.TooSlowError), trio.fail_after(1):
            await counter.ask(Total())
        await counter.stop_now()


async def test_an_ask_whose_deadline_was_moved_is_answered(autojump_clock: MockClock) -> None:
    """The deadline that travelled along is not the last word."""
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        counter = await sup.start_child(Counter, 7)
        gate = await hold(counter)
        scope = trio.move_on_after(1)
        totals: list[int] = []

        async def ask() -> None:
            with scope:
                totals.append(await counter.ask(Total()))

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        scope.deadline = 100
        await trio.sleep(50)
        gate.set()
    assert totals == [7]


async def test_an_unknown_message_is_refused_at_the_sender() -> None:
    async with open_supervisor() as sup:
        counter = await sup.start_child(Counter)
        for verb in (counter.tell, counter.ask):
            with pytest.raises(UnhandledMessage, match="no handler for str; it handles Add, Boom, Hold, Leave, Total"):
                await verb("hello")  # type: ignore[arg-type, call-overload]
        with pytest.raises(UnhandledMessage):
            counter.tell_nowait(3)  # type: ignore[arg-type]


# -- overflow -------------------------------------------------------------------------------------


async def test_tell_waits_for_room_and_senders_come_in_in_turn() -> None:
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        order: list[int] = []

        class Taker(Actor[int | Hold]):
            @on
            async def take(self, number: int) -> None:
                order.append(number)

            @on
            async def hold(self, message: Hold) -> None:
                message.entered.set()
                await message.gate.wait()

        taker = await sup.start_child(ChildSpec(Taker, mailbox=Mailbox(1)))
        gate = await hold(taker)
        for number in range(5):
            nursery.start_soon(taker.tell, number)
            await wait_all_tasks_blocked()
        with pytest.raises(MailboxFull) as caught:
            taker.tell_nowait(9)
        assert isinstance(caught.value, trio.WouldBlock)
        gate.set()
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("overflow", "left"), [("reject", 1), ("drop_newest", 1), ("drop_oldest", 100)])
async def test_other_rules_for_overflow_never_wait(overflow: str, left: int) -> None:
    async with open_supervisor() as sup:
        spec = ChildSpec(Counter, mailbox=Mailbox(1, overflow))  # type: ignore[arg-type]
        counter = await sup.start_child(spec)
        gate = await hold(counter)
        await counter.tell(Add(1))
        if overflow == "reject":
            with pytest.raises(MailboxFull):
                await counter.tell(Add(100))
            with pytest.raises(MailboxFull):
                await counter.ask(Total())
        else:
            await counter.tell(Add(100))
            assert counter.statistics().dropped == 1
        gate.set()
        await wait_all_tasks_blocked()
        assert await counter.ask(Total()) == left


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
async def test_an_ask_that_is_dropped_is_told(overflow: str) -> None:
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        spec = ChildSpec(Counter, mailbox=Mailbox(1, overflow))  # type: ignore[arg-type]
        counter = await sup.start_child(spec)
        gate = await hold(counter)

        async def ask() -> None:
            with pytest.raises(MailboxFull):
                await counter.ask(Total())

        if overflow == "drop_oldest":
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            await counter.tell(Add())
        else:
            await counter.tell(Add())
            await ask()
        await wait_all_tasks_blocked()
        gate.set()


async def test_a_tell_that_waits_for_room_fails_when_the_target_stops() -> None:
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        counter = await sup.start_child(ChildSpec(Counter, mailbox=Mailbox(1)))
        await hold(counter)
        await counter.tell(Add())

        async def tell() -> None:
            with pytest.raises(ActorStopped):
                await counter.tell(Add())

        nursery.start_soon(tell)
        await wait_all_tasks_blocked()
        await counter.stop_now()


async def test_stopping_handles_what_is_queued_and_reports_what_is_lost(autojump_clock: MockClock) -> None:
    notices = Notices()
    sums: list[int] = []

    class Summing(Counter):
        async def on_stop(self, reason: object) -> None:
            sums.append(self.sum)

    async with open_supervisor(emit=notices) as sup, trio.open_nursery() as nursery:
        first, second = [await sup.start_child(ChildSpec(Summing, shutdown=1)) for _ in range(2)]
        gate = await hold(first)
        await hold(second)
        for ref in (first, second):
            for _ in range(3):
                await ref.tell(Add())
        nursery.start_soon(first.stop)
        await wait_all_tasks_blocked()
        gate.set()
        await first.wait_stopped()
        await second.stop()
    assert sums == [3]
    assert [notice.count for notice in notices.all if isinstance(notice, MessagesLost)] == [3]


async def test_two_busy_actors_let_others_run() -> None:
    """C13: a handler that never waits does not keep the loop."""

    class Hot(Actor[None]):
        @on
        async def again(self, _message: None) -> None:
            self.ref.tell_nowait(None)

    async with open_supervisor() as sup:
        for _ in range(2):
            (await sup.start_child(Hot)).tell_nowait(None)
        for _ in range(20):
            with trio.fail_after(5):
                await trio.sleep(0.001)
        for ref in sup.which_children():
            await ref.stop_now()


async def test_lifespan_surrounds_all_that_the_actor_does(autojump_clock: MockClock) -> None:
    """C10, A9: resources with scopes and nurseries; on_stop inside, with the reason."""
    log: list[str] = []

    class Resourceful(Counter):
        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            log.append("enter")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                yield
                nursery.cancel_scope.cancel()
            log.append("leave")

        async def on_start(self) -> None:
            log.append("start")

        async def on_stop(self, reason: object) -> None:
            log.append(f"stop {reason}")

    async with open_supervisor() as sup:
        ref = await sup.start_child(Resourceful)
        await ref.tell(Leave())
        await wait_all_tasks_blocked()
        assert log == ["enter", "start", "stop normal", "leave", "enter", "start"]
        log.clear()
        with pytest.raises(AskFailed):
            await ref.ask(Boom())
        await wait_all_tasks_blocked()
        assert log == ["stop crash: ValueError('boom')", "enter", "start"]
        log.clear()
    assert log == ["stop shutdown", "leave"]


async def test_a_reply_may_be_typed_by_the_request() -> None:
    class Greeting(Request[str]):
        pass

    class Greeter(Actor[Greeting]):
        @on
        async def greet(self, _message: Greeting) -> str:
            return "hello"

    async with open_supervisor() as sup:
        assert await (await sup.start_child(Greeter)).ask(Greeting()) == "hello"
