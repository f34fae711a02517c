"""Timers, watches, background work, snapshots, controls, late replies, threads, stash and become."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors import (
    Actor,
    ActorRef,
    ActorStopped,
    AskFailed,
    Backoff,
    ChildRef,
    ChildSpec,
    ChildStartError,
    DeadlockError,
    Down,
    ExitReason,
    GaveUp,
    Intensity,
    Mailbox,
    MailboxFull,
    NoReply,
    ReplyHandle,
    Request,
    UnhandledMessage,
    on,
    open_supervisor,
    pool,
)
from omniactors.actors.timers import Timers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from outcome import Outcome


@dataclass(frozen=True)
class Do:
    """Has the actor call a function with itself."""

    what: Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class Note:
    text: str


class Log(Request[list[str]]):
    pass


class Boom:
    pass


class Worker(Actor[Do | Note | Log | Boom | Down]):
    """Keeps a log of what it handles."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @on
    async def do(self, message: Do) -> None:
        await message.what(self)

    @on
    async def note(self, message: Note) -> None:
        self.log.append(f"{trio.current_time():g} {message.text}")

    @on
    async def tell_log(self, _message: Log) -> list[str]:
        return self.log

    @on
    async def boom(self, _message: Boom) -> None:
        raise ValueError("boom")

    @on
    async def down(self, message: Down) -> None:
        self.log.append(f"down {message.ref.id} {message.reason.kind}")


async def do(ref: ActorRef[Any], what: Callable[[Any], object]) -> None:
    """Have the actor call `what(self)`; returns when it has."""
    done = trio.Event()

    async def call(actor: Any) -> None:
        try:
            what(actor)
        finally:
            done.set()

    await ref.tell(Do(call))
    await done.wait()


# -- timers -------------------------------------------------------------------------------------


async def test_a_timer_brings_its_message_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)
        begun = trio.current_time()
        await do(ref, lambda actor: actor.timers.once("t", 5, Note("tick")))
        await trio.sleep(20)
        assert await ref.ask(Log()) == [f"{begun + 5:g} tick"]


async def test_a_beating_timer_leaves_out_what_it_missed(autojump_clock: trio.testing.MockClock) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)
        begun = trio.current_time()

        async def busy(actor: Any) -> None:
            await trio.sleep(3.5)

        await do(ref, lambda actor: actor.timers.every("t", 1, Note("beat")))
        await ref.tell(Do(busy))
        await trio.sleep(5.2)
        assert await ref.ask(Log()) == [f"{begun + at:g} beat" for at in (3.5, 4, 5)]


async def test_a_cancelled_timer_says_nothing_though_it_was_due(autojump_clock: trio.testing.MockClock) -> None:
    """A10: what was due while the actor was busy is not handled after a cancel."""
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)

        async def late(actor: Any) -> None:
            actor.timers.once("t", 1, Note("never"))
            await trio.sleep(2)
            assert actor.timers.is_set("t")
            assert actor.timers.cancel("t")
            assert not actor.timers.cancel("t")

        await ref.tell(Do(late))
        await trio.sleep(5)
        assert await ref.ask(Log()) == []


async def test_setting_a_timer_again_replaces_it(autojump_clock: trio.testing.MockClock) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)
        await do(ref, lambda actor: actor.timers.every("t", 1, Note("old")))
        await do(ref, lambda actor: actor.timers.once("t", 3, Note("new")))
        await trio.sleep(10)
        assert [line.partition(" ")[2] for line in await ref.ask(Log())] == ["new"]


async def test_timers_end_with_their_incarnation(autojump_clock: trio.testing.MockClock) -> None:
    """A10."""
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)
        await do(ref, lambda actor: actor.timers.every("t", 1, Note("old life")))
        await ref.tell(Boom())
        await trio.sleep(5)
        assert (ref.incarnation, await ref.ask(Log())) == (2, [])


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
async def test_a_timer_takes_a_number_of_seconds(seconds: float) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)

        def wrong(actor: Worker) -> None:
            with pytest.raises(ValueError, match="finite number of seconds"):
                actor.timers.once("t", seconds, Note("x"))
            with pytest.raises(ValueError, match="above 0"):
                actor.timers.every("t", 0, Note("x"))
            with pytest.raises(UnhandledMessage):
                actor.timers.once("t", 1, "text")

        await do(ref, wrong)


# -- watching -----------------------------------------------------------------------------------


async def test_a_watcher_is_told_once_for_each_watch() -> None:
    async with open_supervisor() as sup:
        watcher, target = await sup.start_child(Worker), await sup.start_child(Worker)
        for _ in range(2):
            await do(watcher, lambda actor: actor.watch(target))
        await target.tell(Boom())
        await wait_all_tasks_blocked()
        await target.tell(Boom())
        await wait_all_tasks_blocked()
        assert await watcher.ask(Log()) == ["down Worker-2 crash"]
        await do(watcher, lambda actor: actor.watch(target))
        await sup.stop_child("Worker-2")
        await wait_all_tasks_blocked()
        assert await watcher.ask(Log()) == ["down Worker-2 crash", "down Worker-2 shutdown"]


async def test_watching_what_has_ended_tells_at_once_and_unwatch_takes_it_back() -> None:
    """A14."""
    async with open_supervisor() as sup:
        watcher, target = await sup.start_child(Worker), await sup.start_child(Worker)
        await target.stop()

        def both(actor: Worker) -> None:
            actor.watch(target)
            actor.unwatch(target)

        await do(watcher, both)
        await wait_all_tasks_blocked()
        assert await watcher.ask(Log()) == []
        await do(watcher, lambda actor: actor.watch(target))
        await wait_all_tasks_blocked()
        assert await watcher.ask(Log()) == ["down Worker-2 shutdown"]


async def test_a_down_goes_ahead_of_messages_and_never_finds_the_mailbox_full() -> None:
    """A1, C14."""
    async with open_supervisor() as sup:
        watcher = await sup.start_child(ChildSpec(Worker, mailbox=Mailbox(2)))
        target = await sup.start_child(Worker)
        gate = trio.Event()

        async def wait(actor: Any) -> None:
            actor.watch(target)
            await gate.wait()

        await watcher.tell(Do(wait))
        await wait_all_tasks_blocked()
        for text in "ab":
            watcher.tell_nowait(Note(text))
        with pytest.raises(MailboxFull):
            watcher.tell_nowait(Note("c"))
        await target.tell(Boom())
        await wait_all_tasks_blocked()
        gate.set()
        assert (await watcher.ask(Log()))[0].startswith("down")


def watch(target: ChildRef) -> Callable[[Worker], None]:
    return lambda actor: actor.watch(target)


async def test_functions_pools_and_subtrees_can_be_watched() -> None:
    async with open_supervisor(intensity=Intensity(9, 5.0)) as sup:
        watcher = await sup.start_child(Worker)
        targets: list[ChildRef] = [
            await sup.start_child(trio.sleep_forever),
            await sup.start_child(pool(Worker, size=2)),
        ]
        for target in targets:
            await do(watcher, watch(target))
            await target.stop()
        await wait_all_tasks_blocked()
        log = await watcher.ask(Log())
        assert [line.split()[2] for line in log] == ["shutdown", "shutdown"]


async def test_an_actor_without_a_handler_for_down_cannot_watch() -> None:
    class Blind(Actor[Do]):
        @on
        async def do(self, message: Do) -> None:
            await message.what(self)

    async with open_supervisor() as sup:
        ref = await sup.start_child(Blind)

        def wrong(actor: Blind) -> None:
            with pytest.raises(UnhandledMessage, match="Down"):
                actor.watch(ref)

        await do(ref, wrong)


# -- background work ------------------------------------------------------------------------------


async def slowly(value: object, seconds: float = 1) -> object:
    await trio.sleep(seconds)
    if isinstance(value, Exception):
        raise value
    return value


def as_note(result: Outcome[object]) -> Note:
    return Note(repr(result))


async def test_background_work_comes_back_as_a_message(autojump_clock: trio.testing.MockClock) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)
        await do(ref, lambda actor: actor.start_soon(slowly, 7, then=as_note))
        await do(ref, lambda actor: actor.start_soon(slowly, OSError("gone"), 2, then=as_note))
        assert await ref.ask(Log()) == []
        await trio.sleep(5)
        assert [line.partition(" ")[2] for line in await ref.ask(Log())] == ["Value(7)", "Error(OSError('gone'))"]
        assert ref.incarnation == 1


async def test_an_error_that_nobody_asked_for_crashes_the_actor(autojump_clock: trio.testing.MockClock) -> None:
    notices: list[Any] = []
    async with open_supervisor(emit=notices.append) as sup:
        ref = await sup.start_child(Worker)
        await do(ref, lambda actor: actor.start_soon(slowly, OSError("gone")))
        await trio.sleep(2)
        assert ref.incarnation == 2
    assert any(
        isinstance(getattr(notice, "reason", None), ExitReason) and notice.reason.matches(OSError) for notice in notices
    )


async def test_background_work_ends_with_its_incarnation(autojump_clock: trio.testing.MockClock) -> None:
    """C11: no task of incarnation n exists when n + 1 is ready."""
    alive: list[int] = []
    seen: list[tuple[int, int]] = []

    async def work(incarnation: int) -> None:
        alive.append(incarnation)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            alive.remove(incarnation)

    class Host(Worker):
        async def on_start(self) -> None:
            seen.append((self.ref.incarnation, len(alive)))
            self.start_soon(work, self.ref.incarnation)

    async with open_supervisor(intensity=Intensity(9, 5.0)) as sup:
        ref = await sup.start_child(Host)
        for _ in range(2):
            await wait_all_tasks_blocked()
            await ref.tell(Boom())
            await trio.sleep(3)
        await ref.stop()
        assert alive == []
    assert seen == [(1, 0), (2, 0), (3, 0)]


async def test_background_work_of_a_start_that_fails_ends_too(autojump_clock: trio.testing.MockClock) -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("ended")

    class Host(Worker):
        async def on_start(self) -> None:
            self.start_soon(work)
            await trio.sleep(1)
            raise OSError("no")

    async with open_supervisor() as sup:
        with pytest.raises(Exception, match="no"):
            await sup.start_child(Host)
        assert ended == ["ended"]


# -- snapshots --------------------------------------------------------------------------------------


class Keeper(Worker):
    """Keeps its log over restarts."""

    begun: list[Any]

    def snapshot(self) -> list[str]:
        return list(self.log)

    def restore(self, state: list[str]) -> None:
        type(self).begun.append(list(state))
        self.log = list(state)


async def test_the_next_incarnation_is_offered_the_state_after_the_last_handled_message() -> None:
    Keeper.begun = []
    async with open_supervisor() as sup:
        ref = await sup.start_child(Keeper)
        await ref.tell(Note("kept"))
        await ref.tell(Boom())
        assert [line.split()[1] for line in await ref.ask(Log())] == ["kept"]
        await ref.stop()
        await sup.restart_child("Keeper-1")
        assert await ref.ask(Log()) == []
    assert len(Keeper.begun) == 1


async def test_a_state_is_offered_twice_in_a_row_and_then_dropped() -> None:
    class Poisoned(Keeper):
        begun: list[Any] = []  # noqa: RUF012 -- filled by this test alone

        async def on_start(self) -> None:
            if self.log:
                raise RuntimeError("this state cannot be worked with")

    async with open_supervisor(intensity=Intensity(5, 5.0)) as sup:
        ref = await sup.start_child(Poisoned)
        await ref.tell(Note("poison"))
        await ref.tell(Boom())
        await wait_all_tasks_blocked()
        assert len(Poisoned.begun) == 2
        assert (ref.status, ref.incarnation, await ref.ask(Log())) == ("running", 4, [])


# -- controls ---------------------------------------------------------------------------------------


async def test_a_suspended_actor_handles_nothing_until_resumed(autojump_clock: trio.testing.MockClock) -> None:
    """A12."""
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)
        begun = trio.current_time()
        await ref.suspend()
        for text in "ab":
            await ref.tell(Note(text))
        await do_control_timer(ref)
        await trio.sleep(5)
        assert (await ref.get_state())["log"] == []
        await ref.resume()
        assert await ref.ask(Log()) == [f"{begun + 5:g} a", f"{begun + 5:g} b"]


async def do_control_timer(ref: ActorRef[Any]) -> None:
    assert ref.statistics().queued == 2


async def test_state_is_read_and_replaced_between_messages() -> None:
    """A13."""
    Keeper.begun = []
    async with open_supervisor() as sup:
        ref = await sup.start_child(Keeper)
        await ref.tell(Note("x"))
        await wait_all_tasks_blocked()
        assert len(await ref.get_state()) == 1
        await ref.replace_state(["new"])
        assert await ref.ask(Log()) == ["new"]
        plain = await sup.start_child(Worker)
        with pytest.raises(NotImplementedError, match="restore"):
            await plain.replace_state([])
        assert plain.incarnation == 1


async def test_controls_go_ahead_of_messages_and_end_with_the_actor() -> None:
    Keeper.begun = []
    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(Keeper, shutdown=0))
        gate = trio.Event()

        async def wait(_actor: Any) -> None:
            await gate.wait()

        await ref.tell(Do(wait))
        await ref.tell(Note("later"))
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                assert await ref.get_state() == []

            nursery.start_soon(look)
            await wait_all_tasks_blocked()
            gate.set()

        async def stopped() -> None:
            with pytest.raises(ActorStopped):
                await ref.suspend()

        async def hang(_actor: Any) -> None:
            await trio.sleep_forever()

        await ref.tell(Do(hang))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stopped)
            await wait_all_tasks_blocked()
            await ref.stop()
        await stopped()


async def test_an_actor_cannot_control_itself_by_waiting() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)

        async def wrong(actor: Worker) -> None:
            with pytest.raises(DeadlockError):
                await actor.ref.get_state()

        await ref.tell(Do(wrong))
        assert await ref.ask(Log()) == []


async def test_a_stop_ends_a_suspended_actor() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)
        await ref.suspend()
        await ref.tell(Note("x"))
        with trio.fail_after(1):
            await ref.stop()


# -- replies that come later ----------------------------------------------------------------------------


class Late(Request[str]):
    pass


class Answer:
    pass


class Desk(Actor[Late | Answer | Boom]):
    def __init__(self) -> None:
        self.owed: list[ReplyHandle] = []

    @on
    async def late(self, _message: Late) -> str:
        self.owed.append(self.reply_later())
        return NoReply

    @on
    async def answer(self, _message: Answer) -> int:
        for number, handle in enumerate(self.owed):
            handle.reply(f"answer {number}")
        return len([handle for handle in self.owed if handle.is_wanted])

    @on
    async def boom(self, _message: Boom) -> None:
        raise ValueError("boom")


async def test_a_handler_may_return_early_and_reply_later() -> None:
    """A11, A5."""
    async with open_supervisor() as sup:
        ref = await sup.start_child(Desk)
        answers: list[str] = []

        async def ask() -> None:
            answers.append(await ref.ask(Late()))

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await ref.ask(Late())
            await ref.tell(Late())
            await ref.tell(Answer())
        assert sorted(answers) == ["answer 0", "answer 1"]


async def test_a_reply_that_never_comes_ends_with_the_incarnation() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Desk)

        async def ask(error: type[Exception]) -> None:
            with pytest.raises(error):
                await ref.ask(Late())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, ActorStopped)
            await wait_all_tasks_blocked()
            await ref.tell(Boom())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, ActorStopped)
            await wait_all_tasks_blocked()
            await ref.stop()


async def test_a_late_reply_may_be_an_error_and_no_reply_needs_a_handle() -> None:
    class Odd(Desk):
        @on
        async def answer(self, _message: Answer) -> Any:
            return NoReply

        @on
        async def late(self, _message: Late) -> str:
            self.reply_later().fail(KeyError("nothing"))
            return NoReply

    async with open_supervisor() as sup:
        ref = await sup.start_child(Odd)
        with pytest.raises(AskFailed) as failed:
            await ref.ask(Late())
        assert isinstance(failed.value.__cause__, KeyError)
        with pytest.raises(TypeError, match="did not call reply_later"):
            await ref.ask(Answer())


# -- threads --------------------------------------------------------------------------------------------


async def test_threads_tell_and_ask() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)

        def work() -> list[str]:
            ref.from_thread.tell(Note("from a thread"))
            with pytest.raises(UnhandledMessage):
                ref.from_thread.tell("text")  # type: ignore[arg-type]
            return ref.from_thread.ask(Log())

        assert len(await trio.to_thread.run_sync(work)) == 1

        def slow() -> None:
            with pytest.raises(trio.TooSlowError):
                ref.from_thread.ask(Log(), timeout=0.01)

        await ref.suspend()
        await trio.to_thread.run_sync(slow)
        with pytest.raises(RuntimeError):
            ref.from_thread.tell(Note("x"))


def test_a_thread_that_outlives_the_run_is_told_so() -> None:
    refs: list[ActorRef[Any]] = []
    errors: list[Exception] = []

    async def main() -> None:
        async with open_supervisor() as sup:
            refs.append(await sup.start_child(Worker))

    trio.run(main)

    def late() -> None:
        try:
            refs[0].from_thread.tell(Note("x"))
        except ActorStopped as error:
            errors.append(error)

    thread = threading.Thread(target=late)
    thread.start()
    thread.join(5)
    assert len(errors) == 1


# -- stash and become -------------------------------------------------------------------------------------


class Open:
    pass


class Door(Actor[Open | Note | Log | Boom]):
    """Puts notes aside until it is opened."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def on_start(self) -> None:
        self.become(self.closed, self.closed_log)

    @on
    async def open(self, _message: Open) -> None:
        self.become()
        self.unstash_all()

    @on
    async def note(self, message: Note) -> None:
        self.log.append(message.text)

    @on
    async def tell_log(self, _message: Log) -> list[str]:
        return list(self.log)

    @on
    async def boom(self, _message: Boom) -> None:
        raise ValueError("boom")

    async def closed(self, message: Note) -> None:
        self.stash(message)

    async def closed_log(self, message: Log) -> list[str]:
        self.stash(message)
        return NoReply


async def test_stashed_messages_are_handled_first_and_in_order() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Door)
        answers: list[list[str]] = []

        async def ask() -> None:
            answers.append(list(await ref.ask(Log())))

        async with trio.open_nursery() as nursery:
            await ref.tell(Note("a"))
            await ref.tell(Note("b"))
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            await ref.tell(Note("c"))
            await ref.tell(Open())
            await ref.tell(Note("d"))
        assert answers == [["a", "b"]]
        assert await ref.ask(Log()) == ["a", "b", "c", "d"]


async def test_stashed_messages_keep_their_room_and_are_reported_at_the_end() -> None:
    """A16."""
    notices: list[Any] = []
    async with open_supervisor(emit=notices.append) as sup:
        ref = await sup.start_child(ChildSpec(Door, mailbox=Mailbox(3)))
        for text in "abc":
            await ref.tell(Note(text))
            await wait_all_tasks_blocked()
        with pytest.raises(MailboxFull):
            ref.tell_nowait(Note("d"))
        await ref.stop_now()
    assert [notice.count for notice in notices if type(notice).__name__ == "MessagesLost"] == [3]


async def test_stashed_messages_come_first_after_a_restart() -> None:
    class Fragile(Door):
        async def on_start(self) -> None:
            if self.ref.incarnation == 1:
                await super().on_start()

    async with open_supervisor() as sup:
        ref = await sup.start_child(Fragile)
        await ref.tell(Note("a"))
        await wait_all_tasks_blocked()
        await ref.tell(Boom())
        assert await ref.ask(Log()) == ["a"]


async def test_become_takes_only_handlers_of_types_that_are_handled() -> None:
    class Wrong(Worker):
        async def text(self, message: str) -> None:
            pass

        async def on_start(self) -> None:
            with pytest.raises(TypeError, match="no handler for str"):
                self.become(self.text)
            with pytest.raises(TypeError, match="bound methods"):
                self.become(slowly)

    async with open_supervisor() as sup:
        await sup.start_child(Wrong)


async def test_giving_up_still_works_with_all_of_it_in_use(autojump_clock: trio.testing.MockClock) -> None:
    class Busy(Keeper):
        begun: list[Any] = []  # noqa: RUF012 -- filled by this test alone

        async def on_start(self) -> None:
            self.timers.every("beat", 0.1, Note("beat"))
            self.start_soon(slowly, OSError("background"), 0.55)
            self.watch(self.ref)

    async def run() -> None:
        async with open_supervisor(backoff=Backoff(initial=1)) as sup:
            await sup.start_child(Busy)
            await sup.wait_children()

    with pytest.raises(GaveUp) as gave_up:
        await run()
    assert isinstance(gave_up.value.__cause__, OSError)


# -- what was found by trying odd combinations ---------------------------------------------------------


async def test_watching_the_dead_again_and_again_stops_nobody_else() -> None:
    class Stubborn(Worker):
        seen = 0

        @on
        async def down(self, message: Down) -> None:
            self.seen += 1
            if self.seen < 100_000:
                self.watch(message.ref)

    async with open_supervisor() as sup:
        target = await sup.start_child(ChildSpec(Worker, id="target"))
        watcher = await sup.start_child(Stubborn)
        await sup.stop_child("target")
        await do(watcher, lambda actor: actor.watch(target))
        await trio.lowlevel.checkpoint()
        assert (await watcher.get_state())["seen"] < 100_000


async def test_what_was_watched_keeps_nothing_of_its_watchers() -> None:
    actors: list[weakref.ref[Any]] = []

    def watch(target: ChildRef) -> Callable[[Any], None]:
        def call(actor: Any) -> None:
            actors.append(weakref.ref(actor))
            actor.watch(target)

        return call

    async with open_supervisor() as sup:
        target = await sup.start_child(Worker)
        for number in range(3):
            watcher = await sup.start_child(ChildSpec(Worker, id=f"watcher {number}"))
            await do(watcher, watch(target))
            await sup.stop_child(watcher.id)
            await sup.delete_child(watcher.id)
            del watcher
        gc.collect()
        assert [actor() for actor in actors] == [None, None, None]


async def test_errors_in_the_cleanup_of_background_work_stay_there() -> None:
    async def work() -> None:
        async def fail_at_the_end() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise OSError("while cleaning up")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_at_the_end)
            nursery.start_soon(trio.sleep_forever)

    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)
        other = await sup.start_child(Worker)
        await do(ref, lambda actor: actor.start_soon(work))
        await wait_all_tasks_blocked()
        await ref.stop()
        assert other.status == "running"


@pytest.mark.parametrize("when", ["enter", "exit", "restore"])
async def test_background_work_ends_wherever_it_was_begun(when: str) -> None:
    """Work that went on would keep the supervisor from ending."""

    class Host(Worker):
        def snapshot(self) -> int:
            return 1

        def restore(self, state: int) -> None:
            if when == "restore" and state:
                self.start_soon(trio.sleep_forever)
                raise OSError("no")

        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            if when == "enter":
                self.start_soon(trio.sleep_forever)
                await wait_all_tasks_blocked()
                raise OSError("no")
            yield
            self.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()

    with trio.move_on_after(5) as scope:
        async with open_supervisor() as sup:
            try:
                ref = await sup.start_child(Host)
            except ChildStartError:
                assert when == "enter"
            else:
                await ref.ask(Log())
                await ref.tell(Boom())
                await wait_all_tasks_blocked()
                await ref.stop()
    assert not scope.cancelled_caught


async def test_timers_do_not_hold_up_a_stop(autojump_clock: trio.testing.MockClock) -> None:
    class Stepper(Worker):
        async def on_start(self) -> None:
            self.timers.once("step", 0, Note("step"))

        @on
        async def note(self, _message: Note) -> None:
            await trio.sleep(0.1)
            self.timers.once("step", 0, Note("step"))

    async with open_supervisor() as sup:
        ref = await sup.start_child(Stepper)
        await trio.sleep(1)
        began = trio.current_time()
        await ref.stop()
        assert (await ref.wait_stopped()) == ExitReason.SHUTDOWN
        assert trio.current_time() - began < 1


async def test_timers_that_are_set_again_leave_nothing_behind() -> None:
    timers = Timers(lambda: 0.0, lambda _message: None, lambda: None)
    messages: list[weakref.ref[Boom]] = []

    def set_again() -> None:
        message = Boom()
        messages.append(weakref.ref(message))
        timers.once("idle", 60, message)

    for _ in range(1000):
        set_again()
    assert sum(message() is not None for message in messages) < 100
    assert timers.next_due() == 60
    assert timers.take_due(61) is not None
    assert timers.next_due() == math.inf


async def test_the_state_after_timers_and_news_is_kept_too(autojump_clock: trio.testing.MockClock) -> None:
    class Restored(Keeper):
        begun: list[Any] = []  # noqa: RUF012 -- this test's alone

        def restore(self, state: list[str]) -> None:
            self.log = state

    async with open_supervisor() as sup:
        ref = await sup.start_child(Restored)
        await do(ref, lambda actor: actor.timers.once("t", 1, Note("timer")))
        await do(ref, lambda actor: actor.start_soon(slowly, 1, 2, then=lambda _result: Note("work")))
        await trio.sleep(3)
        await ref.tell(Boom())
        assert [line.partition(" ")[2] for line in await ref.ask(Log())] == ["timer", "work"]


async def test_restarts_that_are_not_the_states_fault_do_not_cost_it() -> None:
    class Restored(Keeper):
        begun: list[Any] = []  # noqa: RUF012 -- this test's alone

        def restore(self, state: list[str]) -> None:
            self.log = state

    async with open_supervisor(strategy="one_for_all", intensity=Intensity(9, 5.0)) as sup:
        ref = await sup.start_child(ChildSpec(Restored, id="keeper"))
        sibling = await sup.start_child(ChildSpec(Worker, id="sibling"))
        await ref.ask(Log())
        await ref.tell(Note("kept"))
        for number in range(4):
            await wait_all_tasks_blocked()
            assert ref.incarnation == number + 1
            await sibling.tell(Boom())
        await wait_all_tasks_blocked()
        assert len(await ref.ask(Log())) == 1


async def test_become_covers_subclasses_that_came_before() -> None:
    class Shout(Note):
        pass

    class Host(Worker):
        async def other(self, message: Note) -> None:
            self.log.append(f"other {message.text}")

    async with open_supervisor() as sup:
        ref = await sup.start_child(Host)
        await ref.tell(Shout("a"))
        await do(ref, lambda actor: actor.become(actor.other))
        await ref.tell(Shout("b"))
        assert (await ref.ask(Log()))[1] == "other b"


async def test_the_oldest_that_is_dropped_may_be_a_stashed_one() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(Door, mailbox=Mailbox(2, "drop_oldest")))
        for text in "abc":
            await ref.tell(Note(text))
            await wait_all_tasks_blocked()
        await ref.tell(Open())
        await wait_all_tasks_blocked()
        assert (await ref.ask(Log())) == ["c"]
        assert ref.statistics().dropped == 2


async def test_a_stashed_ask_that_nobody_waits_for_takes_no_room(autojump_clock: trio.testing.MockClock) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(Door, mailbox=Mailbox(2)))
        for _ in range(5):
            with trio.move_on_after(1):
                await ref.ask(Log())
        assert ref.statistics().accepted == 5
        ref.tell_nowait(Open())
        assert await ref.ask(Log()) == []


async def test_a_member_that_is_suspended_leaves_its_wakeup_to_another(autojump_clock: trio.testing.MockClock) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(pool(Worker, size=2))
        members = list(ref.value.which_children())
        await wait_all_tasks_blocked()
        for member in members:
            done = trio.Event()

            async def call(_actor: Any, done: trio.Event = done) -> None:
                done.set()

            ref.tell_nowait(Do(call))
            await member.suspend()
            with trio.fail_after(1):
                await done.wait()
            await member.resume()
            await wait_all_tasks_blocked()


async def rest(_actor: object) -> None:
    await trio.sleep(4)


async def test_a_control_that_nobody_waits_for_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Worker)
        await ref.tell(Do(rest))
        for _ in range(3):
            with trio.move_on_after(1):
                await ref.get_state()
        assert not ref.queue.controls


async def test_background_work_that_talks_to_its_stopping_actor_is_no_crash(
    autojump_clock: trio.testing.MockClock,
) -> None:
    reasons: list[ExitReason] = []

    class Feeder(Worker):
        async def on_start(self) -> None:
            self.start_soon(self.feed)

        async def feed(self) -> None:
            while True:
                await self.ref.tell(Do(rest))
                await trio.sleep(3)

        async def on_stop(self, reason: ExitReason) -> None:
            reasons.append(reason)

    async with open_supervisor() as sup:
        ref = await sup.start_child(Feeder)
        await trio.sleep(4.5)
        await ref.stop()
    assert reasons == [ExitReason.SHUTDOWN]


async def test_owed_replies_are_not_kept_once_they_are_given() -> None:
    class Later(Worker):
        @on
        async def tell_log(self, _message: Log) -> list[str]:
            asks.append(weakref.ref(_message))
            self.reply_later().reply(["x"])
            return NoReply

    asks: list[weakref.ref[Log]] = []
    async with open_supervisor() as sup:
        ref = await sup.start_child(Later)
        for _ in range(50):
            assert await ref.ask(Log()) == ["x"]
        assert sum(ask() is not None for ask in asks) < 5


async def test_owing_one_reply_twice_is_owing_it_once() -> None:
    class Twice(Desk):
        @on
        async def late(self, _message: Late) -> str:
            self.owed.append(self.reply_later())
            self.owed[-1] = self.reply_later()
            return NoReply

    async with open_supervisor() as sup:
        ref = await sup.start_child(Twice)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                assert await ref.ask(Late()) == "answer 0"

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            await ref.tell(Answer())
