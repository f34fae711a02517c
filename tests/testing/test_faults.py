"""Fault plans: each fault comes when it is planned, to whom it is planned, and is logged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from omniactors import (
    Actor,
    Agent,
    AskFailed,
    Backoff,
    ChildSpec,
    ChildStartError,
    EventEnvelope,
    Ignore,
    Intensity,
    OmniActors,
    Request,
    RetryPolicy,
    on,
    open_supervisor,
    pool,
)
from omniactors.testing import (
    Crash,
    DeadLetters,
    Delay,
    FaultPlan,
    Hang,
    InjectedFault,
    Injection,
    Notices,
    SwallowCancel,
    after_message,
    at_message,
    at_start,
    at_stop,
    faulty,
    wait_idle,
)
from tests.testing.support import Add, AddTwice, Counter, Moody, Nap, Total, actor

if TYPE_CHECKING:
    from omniactors.testing.faults import Action


async def test_without_faults_a_faulty_actor_is_the_same(autojump_clock: MockClock) -> None:
    log: list[str] = []
    cls = faulty(Counter, FaultPlan())
    assert issubclass(cls, Counter)
    assert (cls.__name__, cls.__module__, cls.__qualname__) == ("Counter", Counter.__module__, "Counter")
    assert set(cls.__handlers__) == set(Counter.__handlers__)
    async with open_supervisor(ChildSpec(cls, 10, log)) as sup:
        counter = actor(sup, "Counter-1")
        await counter.tell(Add(5))
        await counter.tell(AddTwice(1))
        assert await counter.ask(Total()) == 16
    assert log == ["start", "stop shutdown"]
    assert Counter().log == []


async def test_a_crash_at_the_first_start_fails_it() -> None:
    plan = FaultPlan(at_start(Crash()))
    with pytest.raises(ChildStartError) as raised:
        async with open_supervisor(faulty(Counter, plan)):
            pass
    assert isinstance(raised.value.__cause__, InjectedFault)
    assert str(raised.value.__cause__) == "injected at start 1 of supervisor/Counter-1"


async def test_a_crash_at_a_later_start_is_a_failed_restart(autojump_clock: MockClock) -> None:
    plan = FaultPlan(at_start(Crash(OSError), nth=2), at_message(Crash(ValueError("first")), nth=1))
    notices = Notices()
    async with open_supervisor(faulty(Counter, plan), emit=notices) as sup:
        counter = actor(sup, "Counter-1")
        counter.tell_nowait(Add())
        await wait_idle(sup)
        assert counter.incarnation == 3
    assert [(done.point, done.nth, done.incarnation) for done in plan.log] == [("message", 1, 1), ("start", 2, 2)]
    assert plan.unused == []


async def test_ignore_can_be_planned() -> None:
    async with open_supervisor(faulty(Counter, FaultPlan(at_start(Crash(Ignore))))) as sup:
        assert actor(sup, "Counter-1").status == "stopped"


async def test_the_nth_message_of_a_type_counts_over_restarts_and_is_lost(autojump_clock: MockClock) -> None:
    plan = FaultPlan(at_message(Crash(), nth=2, of=Add), at_message(Crash(), nth=5))
    async with open_supervisor(faulty(Counter, plan)) as sup:
        counter = actor(sup, "Counter-1")
        counter.tell_nowait(Nap(0))
        counter.tell_nowait(Add(1))
        counter.tell_nowait(AddTwice(2))
        counter.tell_nowait(Add(4))
        counter.tell_nowait(Add(8))
        counter.tell_nowait(Add(16))
        await wait_idle(sup)
        assert await counter.ask(Total()) == 16
        path = counter.path
    assert plan.log == [
        Injection(path, 1, "message", 2, Crash(), AddTwice(2)),
        Injection(path, 2, "message", 5, Crash(), Add(8)),
    ]


async def test_after_a_message_its_effect_is_there_and_its_reply_is_not(autojump_clock: MockClock) -> None:
    class Ledger(Actor[Any]):
        def __init__(self, book: list[int]) -> None:
            self.book = book

        @on(int)
        async def write(self, entry: int) -> str:
            self.book.append(entry)
            return "written"

    book: list[int] = []
    async with open_supervisor(ChildSpec(faulty(Ledger, FaultPlan(after_message(Crash()))), book)) as sup:
        ledger = actor(sup, "Ledger-1")
        with pytest.raises(AskFailed) as raised:
            await ledger.ask(7)
        assert isinstance(raised.value.__cause__, InjectedFault)
        assert book == [7]
        assert await ledger.ask(8) == "written"


async def test_a_fault_without_a_number_comes_each_time() -> None:
    plan = FaultPlan(at_message(Crash(), nth=None))
    async with open_supervisor(faulty(Counter, plan), intensity=Intensity(10, 5)) as sup:
        for _ in range(3):
            with pytest.raises(AskFailed):
                await actor(sup, "Counter-1").ask(Total())
    assert [done.nth for done in plan.log] == [1, 2, 3]


async def test_a_crash_at_the_stop_comes_before_the_own_on_stop() -> None:
    log: list[str] = []
    notices = Notices()
    async with open_supervisor(ChildSpec(faulty(Counter, FaultPlan(at_stop(Crash()))), 0, log), emit=notices):
        pass
    assert log == ["start"]
    with pytest.raises(AssertionError, match="InjectedFault"):
        notices.check()


async def test_a_delay_takes_its_time_and_then_the_handler_runs(autojump_clock: MockClock) -> None:
    async with open_supervisor(faulty(Counter, FaultPlan(at_message(Delay(7)), at_message(Delay(1))))) as sup:
        assert await actor(sup, "Counter-1").ask(Total()) == 0
        assert trio.current_time() == 8


async def test_who_hangs_goes_on_when_released(autojump_clock: MockClock) -> None:
    hang = Hang()
    async with open_supervisor(faulty(Counter, FaultPlan(at_message(hang, nth=None)))) as sup:
        counter = actor(sup, "Counter-1")
        with pytest.raises(trio.TooSlowError), trio.fail_after(1):
            await counter.ask(Total())
        assert hang.entered.is_set()
        hang.release()
        assert await counter.ask(Total()) == 0


async def test_a_swallowed_cancel_outlasts_the_kill_and_goes_on_as_ever(autojump_clock: MockClock) -> None:
    plan = FaultPlan(at_message(SwallowCancel(linger=20)))
    async with open_supervisor(ChildSpec(faulty(Counter, plan), 1, shutdown=5)) as sup:
        counter = actor(sup, "Counter-1")
        counter.tell_nowait(Add())
        await trio.sleep(1)
        began = trio.current_time()
        await counter.stop()
        assert trio.current_time() - began == 25
        assert (await counter.wait_stopped()).kind == "killed"


async def test_what_never_came_is_told() -> None:
    plan = FaultPlan(at_start(Crash(), nth=2), at_message(Delay(0)))
    async with open_supervisor(faulty(Counter, plan)) as sup:
        await actor(sup, "Counter-1").ask(Total())
    assert plan.unused == [at_start(Crash(), nth=2)]


async def test_the_actors_of_a_pool_share_the_plan(autojump_clock: MockClock) -> None:
    plan = FaultPlan(at_start(Delay(1), nth=3), at_message(Crash(), nth=4))
    async with open_supervisor(pool(faulty(Counter, plan), size=3)) as sup:
        ref = actor(sup, "Counter-pool-1")
        for _ in range(5):
            ref.tell_nowait(Nap(1))
        await wait_idle(sup)
    assert plan.unused == []


def lives(seed: int | str) -> list[tuple[str, int, Action]]:
    """One storm over one actor."""
    plan = FaultPlan.random(seed, Crash(), Delay(1), rate=0.2, points=("message", "start", "stop"))

    async def storm() -> None:
        specs = [ChildSpec(faulty(Counter, plan), backoff=Backoff(initial=1))]
        try:
            async with open_supervisor(*specs, intensity=Intensity(1000, 1)) as sup:
                for _ in range(100):
                    actor(sup, "Counter-1").tell_nowait(Add())
                await wait_idle(sup)
        except ChildStartError:
            return

    trio.run(storm, clock=MockClock(autojump_threshold=0))
    return [(done.point, done.nth, done.action) for done in plan.log]


def test_a_random_plan_is_the_same_for_the_same_seed() -> None:
    assert lives(1) == lives(1)
    assert len({str(lives(seed)) for seed in range(5)}) > 1
    assert len(lives("one")) > 5


def test_a_random_plan_needs_actions() -> None:
    with pytest.raises(ValueError, match="at least one action"):
        FaultPlan.random(1)


@pytest.mark.parametrize(("rate", "expected"), [(0, 0), (1, 10)])
async def test_the_rate_is_a_probability(rate: float, expected: int) -> None:
    plan = FaultPlan.random(3, Crash(), rate=rate)
    async with open_supervisor(faulty(Counter, plan), intensity=Intensity(100, 1)) as sup:
        for _ in range(10):
            actor(sup, "Counter-1").tell_nowait(Add())
        await wait_idle(sup)
    assert len(plan.log) == expected


async def test_types_that_only_the_definer_sees_are_no_obstacle() -> None:
    class Local(Request[int]):
        pass

    class Echo(Actor[Any]):
        @on
        async def local(self, _message: Local) -> int:
            return 1

    async with open_supervisor(faulty(Echo, FaultPlan(at_message(Delay(0))))) as sup:
        assert await actor(sup, "Echo-1").ask(Local()) == 1


class Doubler(Agent, topic="double", retry=RetryPolicy(max_attempts=2, backoff=Backoff(initial=0.01, maximum=0.02))):
    async def handle(self, event: EventEnvelope[int]) -> int:
        return 2 * event.payload.content


async def test_an_agent_fails_the_events_that_the_plan_says() -> None:
    plan = FaultPlan(at_message(Crash(), nth=1), at_message(Crash(), nth=3), at_message(Crash(), nth=4))
    omni = OmniActors("memory://")
    letters = DeadLetters(omni)
    name = omni.add(faulty(Doubler, plan))
    assert name == OmniActors("memory://").add(Doubler)
    with trio.fail_after(20):
        async with omni:
            first = await omni.publish("double", 1)
            assert await omni.wait_result(first) == 2
            await omni.publish("double", 2)
            letter = await letters.expect("double")
            assert (letter.error_type, letter.attempts) == ("InjectedFault", 2)
            bad = await omni.publish("double", "text")
            assert (await letters.expect("double")).failed_message["task_id"] == bad
            await letters.check()
        await omni.shutdown()
    assert [done.message.payload.content for done in plan.log if isinstance(done.message, EventEnvelope)] == [1, 2, 2]
    assert plan.log[0].incarnation == plan.log[-1].incarnation == 1


async def test_faults_follow_what_an_actor_became(autojump_clock: MockClock) -> None:
    plan = FaultPlan(at_message(Delay(5), nth=None, of=Add))
    async with open_supervisor(faulty(Moody, plan)) as sup:
        moody = actor(sup, "Moody-1")
        for message in (Add(1), Nap(0), Add(1), Nap(0), Add(1)):
            moody.tell_nowait(message)
        await wait_idle(sup)
        assert trio.current_time() == 5 + 105 + 105
        assert await moody.ask(Total()) == 21
    assert [done.nth for done in plan.log] == [1, 2, 3]
