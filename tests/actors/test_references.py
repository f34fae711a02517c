"""References are values, other threads are told what to do, and the dead are let go."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from omniactors import (
    Actor,
    ActorRef,
    ActorStopped,
    AskFailed,
    ChildSpec,
    Down,
    ExitReason,
    Intensity,
    NoReply,
    ReplyHandle,
    Request,
    on,
    open_supervisor,
    pool,
    subtree,
)
from omniactors.testing import cancel_everywhere
from tests.actors.support import Add, Boom, Counter, Total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# -- values ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Introduce:
    """A message with a reference in it."""

    to: ActorRef[Any]


@pytest.mark.parametrize("kind", ["actor", "function", "pool", "broadcast", "subtree"])
async def test_a_reference_is_a_value(kind: str) -> None:
    child: Any = {
        "actor": Counter,
        "function": trio.sleep_forever,
        "pool": pool(Counter, size=2),
        "broadcast": pool(Counter, size=2, route="broadcast"),
        "subtree": subtree(Counter),
    }[kind]
    async with open_supervisor() as sup:
        ref = await sup.start_child(child)
        other = await sup.start_child(Counter)
        assert sup.child(ref.id) == ref != other
        assert {ref: 1}[sup.child(ref.id)] == 1
        assert copy.copy(ref) is ref
        assert copy.deepcopy(ref) is ref
        assert copy.deepcopy({"to": [ref]}) == {"to": [ref]}
        assert copy.deepcopy(Introduce(ref)) == Introduce(ref)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match=rf"the reference to {ref.path} is good in its own process only"):
                pickle.dumps([ref], protocol)
        await ref.stop()
        assert await sup.restart_child(ref.id) == ref


# -- other threads --------------------------------------------------------------------------------


def in_thread(call: Callable[[], object]) -> BaseException | None:
    """What the call raised, in a thread that knows no trio."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 -- it is what the test is about
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def step(verb: Any, message: object) -> Callable[[], object]:
    return lambda: verb(message).send(None)


WRONG: dict[str, Callable[[ActorRef[Any]], Callable[[], object]]] = {
    "tell_nowait": lambda ref: lambda: ref.tell_nowait(Add()),
    "tell": lambda ref: step(ref.tell, Add()),
    "ask": lambda ref: step(ref.ask, Total()),
    "tell in another run": lambda ref: lambda: trio.run(ref.tell, Add()),
    "ask in another run": lambda ref: lambda: trio.run(ref.ask, Total()),
    "get_state in another run": lambda ref: lambda: trio.run(ref.get_state),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("route", [None, "shared", "round_robin", "broadcast"])
@pytest.mark.parametrize("is_idle", [True, False])
async def test_a_call_in_a_wrong_thread_raises_and_changes_nothing(what: str, route: Any, is_idle: bool) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(pool(Counter, size=1, route=route) if route else Counter)
        await trio.testing.wait_all_tasks_blocked()
        if not is_idle:
            ref.tell_nowait(Add(0))
        before = ref.statistics()
        error = in_thread(WRONG[what](ref))
        if route and what.startswith("get_state"):
            assert isinstance(error, TypeError | RuntimeError)
        else:
            assert isinstance(error, RuntimeError)
            if "tell in" in what or "ask" in what or what == "tell_nowait":
                assert str(error).startswith(f"{ref.path}")
                assert "from_thread" in str(error)
        assert ref.statistics() == before
        with trio.fail_after(10):
            assert await ref.ask(Total()) in (0, [0])
            await trio.to_thread.run_sync(ref.from_thread.tell, Add(2))
            assert await ref.ask(Total()) in (2, [2])


async def test_what_an_actor_does_in_a_wrong_thread_leaves_it_as_it_was() -> None:
    """Its own verbs, called by a function that it runs in a thread."""

    class Careless(Actor[Any]):
        @on
        async def add(self, _message: Add) -> None:
            pass

        @on
        async def total(self, _message: Total) -> int:
            return 7

        async def on_start(self) -> None:
            actors.append(self)

    actors: list[Careless] = []
    async with open_supervisor() as sup:
        careless = await sup.start_child(Careless)
        await trio.testing.wait_all_tasks_blocked()
        actor = actors[0]
        for call in (lambda: actor.timers.once("late", 0, Add()), lambda: actor.start_soon(trio.sleep, 0)):
            assert "runs in another thread" in str(in_thread(call))
        with trio.fail_after(10):
            assert await careless.ask(Total()) == 7
            await careless.stop()


@pytest.mark.parametrize("route", ["shared", "broadcast"])
async def test_a_late_reply_in_a_wrong_thread_raises_and_the_asker_is_answered_later(route: Any) -> None:
    handles: list[ReplyHandle] = []

    class Late(Actor[Any]):
        @on
        async def total(self, _message: Total) -> int:
            handles.append(self.reply_later())
            return NoReply

    with trio.fail_after(10):
        async with open_supervisor() as sup, trio.open_nursery() as nursery:
            late = await sup.start_child(pool(Late, size=1, route=route))
            nursery.start_soon(late.ask, Total())
            await trio.testing.wait_all_tasks_blocked()
            handle = handles.pop()
            assert "runs in another thread" in str(in_thread(lambda: handle.reply(1)))
            assert "runs in another thread" in str(in_thread(lambda: handle.fail(ValueError())))
            assert handle.is_wanted
            await trio.to_thread.run_sync(trio.from_thread.run_sync, handle.reply, 1)
            assert not handle.is_wanted


class Slow(Request[int]):
    """Is answered never."""


class Sleepy(Actor[Any]):
    @on
    async def slow(self, _message: Slow) -> int:
        await trio.Event().wait()
        return 1

    @on
    async def total(self, _message: Total) -> int:
        return 1


def ask_on(ref: ActorRef[Any], request: object) -> None:
    while True:
        ref.from_thread.ask(request)


def end(how: str) -> None:
    """End a run, or let it go on to its end."""
    if how == "raises":
        raise ValueError
    if how == "interrupted":
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["returns", "raises", "interrupted"])
def test_from_thread_raises_actor_stopped_however_the_run_ends(how: str) -> None:
    """Threads ask all the time, and one waits for a reply, when the run ends."""
    raised: list[BaseException | None] = []

    def hammer(ref: ActorRef[Any], request: object) -> None:
        raised.append(in_thread(lambda: ask_on(ref, request)))

    async def main(threads: list[threading.Thread]) -> None:
        async with open_supervisor() as sup:
            sleepy = await sup.start_child(ChildSpec(Sleepy, shutdown=0))
            quick = await sup.start_child(ChildSpec(Sleepy, shutdown=0))
            for ref, request in [(sleepy, Slow()), (quick, Total()), (quick, Total())]:
                threads.append(threading.Thread(target=hammer, args=(ref, request)))
                threads[-1].start()
            await trio.sleep(0.005)
            end(how)

    threads: list[threading.Thread] = []
    for _ in range(10):
        with contextlib.suppress(ValueError, KeyboardInterrupt):
            trio.run(main, threads)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert [type(error) for error in raised] == [ActorStopped] * 30


# -- the dead -------------------------------------------------------------------------------------


class Payload:
    """Stands for something large."""


class Decoder(Actor[Any]):
    """Notes weakly what it is and has; crashes at a negative number."""

    alive: dict[str, weakref.ref[object]]

    def __init__(self, alive: dict[str, weakref.ref[object]]) -> None:
        alive.setdefault("actor", weakref.ref(self))
        self.alive = alive
        self.timers_message = Payload()

    async def on_start(self) -> None:
        self.timers.once("never", 1000, Add())
        self.watch(self.supervisor.child("other"))
        self.start_soon(trio.sleep_forever)

    @on
    async def down(self, _message: Down) -> None:
        pass

    @on
    async def add(self, message: Add) -> None:
        local = Payload()
        self.alive.setdefault("local", weakref.ref(local))
        if message.amount < 0:
            raise ValueError

    @on
    async def boom(self, _message: Boom) -> None:
        local = Payload()
        self.alive.setdefault("local", weakref.ref(local))
        raise ValueError

    @on
    async def total(self, _message: Total) -> int:
        return 0


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is gone is gone by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", ["tell", "ask", "stop"])
async def test_a_dead_incarnation_is_let_go_at_once(how: str) -> None:
    """The actor, and the locals of the handler that failed: without the garbage collector, once it runs again."""
    alive: dict[str, weakref.ref[object]] = {}
    async with open_supervisor(ChildSpec(Counter, id="other")) as sup:
        decoder = await sup.start_child(Decoder, alive)
        if how == "tell":
            await decoder.tell(Add(-1))
        elif how == "ask":
            with pytest.raises(AskFailed):
                await decoder.ask(Boom())
        else:
            await decoder.tell(Add(1))
            await decoder.stop()
            await sup.restart_child(decoder.id)
        assert await decoder.ask(Total()) == 0
        assert decoder.incarnation == 2
        await trio.testing.wait_all_tasks_blocked()
        assert [name for name, ref in alive.items() if ref() is not None] == []


@pytest.mark.usefixtures("no_collector")
async def test_a_stopped_actor_is_let_go_while_its_reference_stays() -> None:
    alive: dict[str, weakref.ref[object]] = {}
    async with open_supervisor(ChildSpec(Counter, id="other")) as sup:
        decoder = await sup.start_child(Decoder, alive)
        await decoder.tell(Add(1))
        await decoder.stop()
        assert (await decoder.wait_stopped()).kind == "shutdown"
        await trio.testing.wait_all_tasks_blocked()
        assert [name for name, ref in alive.items() if ref() is not None] == []


async def test_an_actor_that_has_ended_starts_nothing() -> None:
    """Whoever still holds it is told so."""
    actors: list[Actor[Any]] = []

    class Kept(Actor[Any]):
        def __init__(self) -> None:
            actors.append(self)

    async with open_supervisor() as sup:
        kept = await sup.start_child(Kept)
        await kept.stop()
        with pytest.raises(RuntimeError, match="background work can be started while the actor runs"):
            actors[0].start_soon(trio.sleep, 0)
        assert actors[0].ref is kept


async def test_the_reason_of_a_crash_keeps_the_users_frames_and_not_ours() -> None:
    reasons: list[ExitReason] = []
    async with open_supervisor(intensity=Intensity(3, 5)) as sup:
        counter = await sup.start_child(Counter)
        counter.call_at_end(reasons.append)
        with pytest.raises(AskFailed):
            await counter.ask(Boom())
        await counter.ask(Total())
        trace = reasons[0].error.__traceback__ if reasons[0].error else None
        assert trace is not None
        assert trace.tb_frame.f_code.co_name == "boom"


async def test_a_message_class_that_an_actor_has_met_is_not_kept() -> None:
    async with open_supervisor() as sup:
        counter = await sup.start_child(Counter)
        kind = type("Special", (Add,), {})
        met = weakref.ref(kind)
        await counter.tell(kind(3))
        assert await counter.ask(Total()) == 3
        del kind
        gc.collect()
        assert met() is None


def test_an_ask_that_is_withdrawn_calls_nothing_of_the_messages_beside_it() -> None:
    """Messages may have an `==` of their own, as arrays do."""

    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        def __hash__(self) -> int:
            return 1

    class Taker(Actor[Any]):
        @on
        async def array(self, _message: Array) -> None:
            pass

        @on
        async def total(self, _message: Total) -> int:
            return 1

    async def main() -> None:
        async with open_supervisor() as sup:
            taker = await sup.start_child(Taker)
            await taker.suspend()
            taker.tell_nowait(Array())
            with trio.move_on_after(0.001):
                await taker.ask(Total())
            assert taker.statistics().queued == 1
            await taker.resume()
            assert await taker.ask(Total()) == 1

    trio.run(main)


def test_asks_cancelled_at_any_moment_leave_true_counts() -> None:
    async def scenario() -> None:
        async with open_supervisor() as sup:
            counter = await sup.start_child(Counter)
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(counter.ask, Total())
            statistics = counter.statistics()
            assert (statistics.accepted, statistics.queued) == (3, 0)

    cancel_everywhere(scenario)
