"""What an actor does next: what goes ahead of messages, when others have their turn, and what the next message sees."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from omniactors import (
    Actor,
    ActorRef,
    AskFailed,
    ChildSpec,
    Down,
    ExitReason,
    Intensity,
    Mailbox,
    NoReply,
    Request,
    on,
    open_supervisor,
    pool,
)
from omniactors.actors.cell import BATCH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from outcome import Outcome
    from trio.testing import MockClock


@dataclass(frozen=True)
class Work:
    """A message that takes some time, in which the processor is free or not."""

    seconds: float = 0
    computes: bool = False


class Tick:
    """Of a timer."""


@dataclass(frozen=True)
class Done:
    """Of background work."""

    outcome: Outcome[Any]


class Worker(Actor[Any]):
    """Notes what it handles, and when."""

    def __init__(self, log: list[tuple[str, float]]) -> None:
        self.log = log

    def note(self, what: str) -> None:
        self.log.append((what, trio.current_time()))

    @on
    async def work(self, message: Work) -> None:
        self.note("work")
        if message.computes:
            end = time.perf_counter() + message.seconds
            while time.perf_counter() < end:
                pass
        elif message.seconds:
            await trio.sleep(message.seconds)

    @on
    async def tick(self, _message: Tick) -> None:
        self.note("tick")

    @on
    async def down(self, _message: Down) -> None:
        self.note("down")

    @on
    async def done(self, _message: Done) -> None:
        self.note("done")


def order(log: list[tuple[str, float]]) -> list[str]:
    """What was handled, without the times."""
    return [what for what, _ in log]


async def test_a_due_timer_waits_for_the_message_in_hand_and_no_other(autojump_clock: MockClock) -> None:
    class Busy(Worker):
        async def on_start(self) -> None:
            self.timers.once("tick", 0.5, Tick())

    log: list[tuple[str, float]] = []
    async with open_supervisor() as sup:
        busy = await sup.start_child(ChildSpec(Busy, log, shutdown=0))
        for _ in range(40):
            busy.tell_nowait(Work(1))
        await trio.sleep(3.5)
    assert order(log) == ["work", "tick", "work", "work", "work"]


async def test_all_due_timers_go_before_the_next_message(autojump_clock: MockClock) -> None:
    """Those too that became due while another one was handled."""

    class Busy(Worker):
        async def on_start(self) -> None:
            for number, seconds in enumerate([0.5, 0.6, 1.5, 5]):
                self.timers.once(number, seconds, Tick())

        @on
        async def tick(self, message: Tick) -> None:
            await super().tick(message)
            await trio.sleep(1)

    log: list[tuple[str, float]] = []
    async with open_supervisor() as sup:
        busy = await sup.start_child(ChildSpec(Busy, log, shutdown=0))
        for _ in range(3):
            busy.tell_nowait(Work(1))
        await trio.sleep(7)
    assert order(log) == ["work", "tick", "tick", "tick", "work", "tick", "work"]


async def test_a_timer_that_its_own_handler_sets_again_lets_messages_through(autojump_clock: MockClock) -> None:
    class Restless(Worker):
        @on
        async def tick(self, message: Tick) -> None:
            self.timers.once("tick", 0, message)

    log: list[tuple[str, float]] = []
    with trio.fail_after(60):
        async with open_supervisor() as sup:
            restless = await sup.start_child(ChildSpec(Restless, log, shutdown=0))
            await restless.tell(Tick())
            for _ in range(3):
                await restless.tell(Work())
            while len(log) < 3:
                await trio.lowlevel.checkpoint()


async def test_a_timer_goes_before_what_waits_for_the_whole_pool(autojump_clock: MockClock) -> None:
    class Busy(Worker):
        async def on_start(self) -> None:
            self.timers.once("tick", 0.5, Tick())

    log: list[tuple[str, float]] = []
    async with open_supervisor() as sup:
        alone = await sup.start_child(pool(Busy, log, size=1, shutdown=0))
        alone.value.child(1).tell_nowait(Work(1))
        for _ in range(2):
            alone.tell_nowait(Work(1))
        await trio.sleep(1.5)
    assert order(log) == ["work", "tick", "work"]


async def test_news_goes_before_the_next_message(autojump_clock: MockClock) -> None:
    async def short() -> None:
        await trio.sleep(0.5)

    class Busy(Worker):
        async def on_start(self) -> None:
            self.start_soon(short, then=Done)
            self.watch(other)

    log: list[tuple[str, float]] = []
    async with open_supervisor() as sup:
        other = await sup.start_child(ChildSpec(short, restart="temporary"))
        busy = await sup.start_child(ChildSpec(Busy, log, shutdown=0))
        for _ in range(40):
            busy.tell_nowait(Work(1))
        await trio.sleep(2)
    assert sorted(order(log)[1:3]) == ["done", "down"]
    assert order(log)[3] == "work"


async def test_a_control_goes_before_the_next_message(autojump_clock: MockClock) -> None:
    class Telling(Worker):
        def snapshot(self) -> int:
            return len(self.log)

    async with open_supervisor() as sup:
        busy = await sup.start_child(ChildSpec(Telling, [], shutdown=0))
        for _ in range(40):
            busy.tell_nowait(Work(1))
        await trio.sleep(0.5)
        assert await busy.get_state() == 1


# -- time slices ----------------------------------------------------------------------------------

LONG = 0.02
"""Seconds of processor time: so much more than a time slice that a slow machine tells them apart."""


async def most_between_two_turns(is_over: Callable[[], bool], handled: list[Any]) -> int:
    """How many messages were handled at most between two turns of this task."""
    most = 0
    while not is_over():
        before = len(handled)
        await trio.lowlevel.checkpoint()
        most = max(most, len(handled) - before)
    return most


async def test_others_have_their_turn_after_each_message_that_takes_its_time() -> None:
    log: list[tuple[str, float]] = []
    async with open_supervisor() as sup:
        busy = await sup.start_child(ChildSpec(Worker, log, shutdown=0))
        for _ in range(30):
            busy.tell_nowait(Work(LONG, computes=True))
        assert await most_between_two_turns(lambda: len(log) >= 20, log) <= 2


async def test_slow_messages_behind_quick_ones_are_found_out_soon() -> None:
    log: list[tuple[str, float]] = []
    async with open_supervisor() as sup:
        busy = await sup.start_child(ChildSpec(Worker, log, shutdown=0, mailbox=Mailbox(1000)))
        for number in range(400):
            busy.tell_nowait(Work(LONG if number >= 200 else 0, computes=True))
        while len(log) < 200:
            await trio.lowlevel.checkpoint()
        assert len(log) <= 200 + BATCH
        assert await most_between_two_turns(lambda: len(log) >= 200 + BATCH + 6, log) <= BATCH


async def test_others_have_their_turn_between_slow_news() -> None:
    """Handlers of what background work brings count like any other."""

    async def nothing() -> None:
        await trio.lowlevel.checkpoint()

    class Reporter(Worker):
        @on
        async def tick(self, _message: Tick) -> None:
            for _ in range(20):
                self.start_soon(nothing, then=Done)
            self.timers.once("later", 0, Work(LONG, computes=True))

        @on
        async def done(self, _message: Done) -> None:
            await self.work(Work(LONG, computes=True))

    log: list[tuple[str, float]] = []
    async with open_supervisor() as sup:
        reporter = await sup.start_child(ChildSpec(Reporter, log, shutdown=0))
        await reporter.tell(Tick())
        assert await most_between_two_turns(lambda: len(log) >= 20, log) <= 2


async def test_others_have_their_turn_between_slow_controls() -> None:
    """A snapshot may take its time, and many may ask for one."""

    class Large(Worker):
        def snapshot(self) -> list[int]:
            end = time.perf_counter() + LONG
            while time.perf_counter() < end:
                pass
            taken.append(1)
            return []

    taken: list[int] = []
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        large = await sup.start_child(ChildSpec(Large, [], shutdown=0))
        for _ in range(20):
            nursery.start_soon(large.get_state)
        assert await most_between_two_turns(lambda: len(taken) >= 20, taken) <= 2


# -- context variables ----------------------------------------------------------------------------

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")


class Enter(Request[str]):
    """Sets the tenant; the reply is who it was before."""


class Tenanted(Actor[Any]):
    """Sets a context variable in each way, and takes none back."""

    @on
    async def enter(self, _message: Enter) -> str:
        before = TENANT.get()
        TENANT.set("ann")
        return before

    @on
    async def tick(self, _message: Tick) -> None:
        TENANT.set("tim")

    @on
    async def done(self, _message: Done) -> None:
        TENANT.set("don")


async def test_a_context_variable_set_in_one_handler_does_not_reach_the_next_message() -> None:
    async def nothing() -> None:
        await trio.lowlevel.checkpoint()

    class Noisy(Tenanted):
        async def on_start(self) -> None:
            self.timers.every("tick", 0.001, Tick())
            self.start_soon(nothing, then=Done)

    async with open_supervisor() as sup:
        noisy = await sup.start_child(Noisy)
        for _ in range(3):
            await noisy.tell(Tick())
            await noisy.tell(Tick())
            assert await noisy.ask(Enter()) == "nobody"
            await trio.sleep(0.003)


async def test_what_on_start_and_lifespan_set_is_seen_by_every_message() -> None:
    """And the token of `lifespan` is good at its end, whatever handlers did in between."""
    left: list[str] = []

    class Scoped(Tenanted):
        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            token = TENANT.set("life")
            yield
            TENANT.reset(token)
            left.append(TENANT.get())

    async with open_supervisor() as sup:
        scoped = await sup.start_child(Scoped)
        assert [await scoped.ask(Enter()) for _ in range(3)] == ["life"] * 3
        await scoped.stop()
        assert await scoped.wait_stopped() == ExitReason.SHUTDOWN
    assert left == ["nobody"]


async def test_context_variables_may_hold_what_cannot_be_compared() -> None:
    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        def __hash__(self) -> int:
            return 1

    arrays: ContextVar[Array] = ContextVar("arrays")
    first = Array()
    seen: list[bool] = []

    class Numeric(Actor[Any]):
        async def on_start(self) -> None:
            arrays.set(first)
            self.timers.once("tick", 0, Tick())

        @on
        async def work(self, _message: Work) -> None:
            seen.append(arrays.get() is first)
            arrays.set(Array())

        @on
        async def tick(self, _message: Tick) -> None:
            await self.work(Work())

    async with open_supervisor() as sup:
        numeric = await sup.start_child(Numeric)
        for _ in range(3):
            await numeric.tell(Work())
        await trio.testing.wait_all_tasks_blocked()
        assert numeric.incarnation == 1
    assert seen == [True] * 4


async def test_a_context_variable_reaches_the_background_work_of_its_own_message() -> None:
    seen: list[str] = []

    async def look() -> None:
        seen.append(TENANT.get())

    class Spawning(Actor[Any]):
        @on
        async def work(self, message: Work) -> None:
            TENANT.set(str(message.seconds))
            self.start_soon(look)

    async with open_supervisor() as sup:
        spawning = await sup.start_child(Spawning)
        for number in range(2):
            await spawning.tell(Work(number))
        await trio.testing.wait_all_tasks_blocked()
    assert sorted(seen) == ["0", "1"]


# -- counters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3])
async def test_counts_are_true_while_messages_are_handled(size: int, autojump_clock: MockClock) -> None:
    """Of one actor, or of a pool of some; seen from outside and from the handler itself."""
    within: list[int] = []

    class Slow(Actor[Work]):
        @on
        async def work(self, message: Work) -> None:
            within.append(ref.statistics().accepted)
            await trio.sleep(message.seconds)

    async with open_supervisor() as sup:
        ref: ActorRef[Work] = await sup.start_child(pool(Slow, size=size) if size else Slow)
        for _ in range(6):
            ref.tell_nowait(Work(1))
        for seconds in range(6):
            statistics = ref.statistics()
            assert statistics.accepted == 6
            if size < 2 and seconds:
                assert statistics.queued == 6 - seconds
            await trio.sleep(0.5 if seconds == 0 else 1)
    assert within == [6] * 6


async def test_a_pool_that_has_shrunk_has_still_accepted_what_it_has(autojump_clock: MockClock) -> None:
    class Quick(Actor[Work]):
        @on
        async def work(self, _message: Work) -> None:
            pass

    async with open_supervisor() as sup:
        crew = await sup.start_child(pool(Quick, size=4, route="round_robin"))
        for _ in range(20):
            await crew.tell(Work())
        await crew.resize(1)
        assert crew.statistics().accepted == 20


@pytest.mark.parametrize("source", ["mailbox", "pool", "timer"])
async def test_what_is_put_aside_is_counted_once(source: str, autojump_clock: MockClock) -> None:
    """Wherever it came from, and over its second handling."""

    class Patient(Actor[Any]):
        is_ready = False

        @on
        async def work(self, message: Work) -> None:
            if not self.is_ready:
                self.stash(message)

        @on
        async def tick(self, _message: Tick) -> None:
            self.is_ready = True
            self.unstash_all()

        @on
        async def boom(self, _message: Boom) -> None:
            self.timers.once("work", 0, Work())

    async with open_supervisor() as sup:
        crew = await sup.start_child(pool(Patient, size=1))
        one: ActorRef[Any] = crew.value.child(1)
        if source == "timer":
            one.tell_nowait(Boom())
        else:
            (crew if source == "pool" else one).tell_nowait(Work())
        await trio.sleep(1)
        before = one.statistics().accepted + crew.statistics().accepted
        assert one.inspect().mailbox.taken >= 0  # type: ignore[union-attr]
        one.tell_nowait(Tick())
        await trio.sleep(1)
        assert one.statistics().accepted + crew.statistics().accepted == before + 1
        assert one.statistics().queued == 0


async def test_stashing_costs_the_same_for_each_message() -> None:
    """With many put aside as with few; in steps of the interpreter, since time is not reliable."""

    class Hoarder(Actor[Work]):
        @on
        async def work(self, message: Work) -> None:
            self.stash(message)

    async with open_supervisor() as sup:
        hoarder = await sup.start_child(ChildSpec(Hoarder, mailbox=Mailbox(200_000), shutdown=0))
        with trio.fail_after(20):  # some 30 s and more when each one copies those before it
            for _ in range(100_000):
                hoarder.tell_nowait(Work())
            while hoarder.statistics().queued:
                await trio.lowlevel.checkpoint()
        assert len(hoarder.queue.stashed) == 100_000


# -- the end --------------------------------------------------------------------------------------


class Boom(Request[None]):
    """Crashes."""


@pytest.mark.parametrize("where", ["on_stop", "lifespan"])
@pytest.mark.parametrize("how", ["crash", "normal"])
async def test_what_an_actor_does_at_its_end_has_the_grace_time(
    where: str, how: str, autojump_clock: MockClock
) -> None:
    """Also when nobody has asked it to stop: it is restarted, and the crash stays the reason."""
    reasons: list[ExitReason] = []

    class Clinging(Actor[Any]):
        @on
        async def boom(self, _message: Boom) -> None:
            if how == "normal":
                self.stop()
            else:
                raise ValueError("boom")

        @on
        async def work(self, _message: Work) -> None:
            pass

        async def on_start(self) -> None:
            self.ref.call_at_end(reasons.append)

        async def on_stop(self, _reason: ExitReason) -> None:
            if where == "on_stop" and self.ref.incarnation == 1:
                await trio.sleep_forever()

        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            try:
                yield
            finally:
                if where == "lifespan" and self.ref.incarnation == 1:
                    await trio.sleep_forever()

    with trio.fail_after(100):
        async with open_supervisor() as sup:
            clinging = await sup.start_child(ChildSpec(Clinging, shutdown=2.0))
            clinging.tell_nowait(Boom())
            await clinging.ask(Work())
            assert trio.current_time() == 2.0
            assert clinging.incarnation == 2
    assert reasons[0].kind == ("crash" if how == "crash" else "killed")
    if how == "crash":
        assert reasons[0].matches(ValueError)
        assert reasons[0].error is not None
        assert "longer than its grace time" in reasons[0].error.__notes__[0]


@pytest.mark.parametrize("error", [asyncio.CancelledError("its"), GeneratorExit(), BaseException("panic")], ids=repr)
@pytest.mark.parametrize("where", ["handler", "background", "on_start"])
async def test_what_other_libraries_raise_is_a_crash_like_any_other(
    error: BaseException, where: str, autojump_clock: MockClock
) -> None:
    """No cancellation, and nothing that ends the supervisor."""
    reasons: list[ExitReason] = []

    async def fail() -> None:
        raise error

    class Mixed(Actor[Any]):
        async def on_start(self) -> None:
            if where == "on_start" and self.ref.incarnation == 2:
                raise error

        @on
        async def boom(self, _message: Boom) -> None:
            self.ref.call_at_end(reasons.append)
            if where == "background":
                self.start_soon(fail)
            else:
                raise error if where == "handler" else ValueError

        @on
        async def work(self, _message: Work) -> str:
            return "works"

        async def on_stop(self, reason: ExitReason) -> None:
            reasons.append(reason)

    async with open_supervisor(intensity=Intensity(5, 5)) as sup:
        mixed = await sup.start_child(Mixed)
        if where == "handler":
            with pytest.raises(AskFailed) as caught:
                await mixed.ask(Boom())
            assert caught.value.__cause__ is error
        else:
            await mixed.tell(Boom())
        await trio.sleep(1)
        assert await mixed.ask(Work()) == "works"
        assert [reason.kind for reason in reasons] == ["crash", "crash"]
        assert where == "on_start" or all(reason.error is error for reason in reasons)
        assert mixed.incarnation == (3 if where == "on_start" else 2)


async def test_whatever_on_stop_raises_the_crash_stays_the_reason(autojump_clock: MockClock) -> None:
    reasons: list[ExitReason] = []

    class Failing(Actor[Any]):
        @on
        async def boom(self, _message: Boom) -> None:
            self.ref.call_at_end(reasons.append)
            raise ValueError("first")

        async def on_stop(self, _reason: ExitReason) -> None:
            raise asyncio.CancelledError("second")

    async with open_supervisor() as sup:
        failing = await sup.start_child(ChildSpec(Failing, restart="temporary"))
        await failing.tell(Boom())
        await failing.wait_stopped()
    assert reasons[0].matches(ValueError)
    assert "second" in reasons[0].error.__notes__[0]  # type: ignore[union-attr]


async def test_a_late_reply_is_owed_however_timers_and_a_stop_come_in_between(autojump_clock: MockClock) -> None:
    class Late(Actor[Any]):
        @on
        async def enter(self, _message: Enter) -> str:
            handle = self.reply_later()
            self.start_soon(trio.sleep, 1, then=lambda _outcome: Work())
            self.handle = handle
            return NoReply

        @on
        async def work(self, _message: Work) -> None:
            self.handle.reply("late")

    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        late = await sup.start_child(Late)

        async def ask() -> None:
            assert await late.ask(Enter()) == "late"

        nursery.start_soon(ask)
        await trio.sleep(2)
