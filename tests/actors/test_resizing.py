"""Pools that are resized while they work."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors import (
    ActorRef,
    ActorStopped,
    AskFailed,
    ChildSpec,
    ChildStartError,
    DeadlockError,
    Intensity,
    Mailbox,
    MessagesLost,
    PoolRef,
    SupervisorClosed,
    open_supervisor,
    pool,
)
from tests.actors.support import Boom, Notices, cancel_everywhere
from tests.actors.workers import ROUTES, TO_ONE, Call, Job, Log, Worker, workers

if TYPE_CHECKING:
    from trio.testing import MockClock

# -- resizing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
async def test_a_pool_grows_and_shrinks(route: str) -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(log, route, 2))
        await ref.resize(4)
        assert (ref.size, ref.statistics().size, ref.value.count_children().active) == (4, 4, 4)
        assert [child.id for child in ref.value.which_children()] == [4, 3, 2, 1]
        await ref.resize(4)
        for name in range(40):
            await ref.tell(Job(name))
        await wait_all_tasks_blocked()
        if route != "shared":
            assert {number for _, number in log.done} == {1, 2, 3, 4}
        await ref.resize(1)
        assert [child.id for child in ref.value.which_children()] == [1]
        assert [member.number for member in ref.statistics().members] == [1]
        log.done.clear()
        for name in range(10):
            await ref.tell(Job(name))
        await wait_all_tasks_blocked()
        assert log.done == [(name, 1) for name in range(10)]


@pytest.mark.parametrize("route", TO_ONE)
async def test_nothing_is_lost_while_it_is_resized(route: str, autojump_clock: MockClock) -> None:
    log, notices = Log(), Notices()
    asked: list[int] = []
    async with open_supervisor(emit=notices) as sup:
        ref = await sup.start_child(
            ChildSpec(workers(log, route, 3, shutdown=60, intensity=Intensity(1000, 1)), mailbox=Mailbox(2))
        )

        async def tell(first: int) -> None:
            for name in range(first, first + 50):
                await ref.tell(Job(name, 0.1))

        async def ask(first: int) -> None:
            for name in range(first, first + 50):
                await ref.ask(Job(name, 0.1))
                asked.append(name)

        async with trio.open_nursery() as nursery:
            for sender in range(4):
                nursery.start_soon(tell, 100 * sender)
                nursery.start_soon(ask, 1000 + 100 * sender)
            for size in (1, 5, 2, 8, 1, 3):
                await trio.sleep(0.55)
                await ref.resize(size)
        await ref.stop()
    sent = sorted(100 * sender + step + base for sender in range(4) for step in range(50) for base in (0, 1000))
    assert log.names == sent
    assert sorted(asked) == [name for name in sent if name >= 1000]
    assert not [notice for notice in notices.all if isinstance(notice, MessagesLost)]


async def test_keys_keep_their_order_over_resizes_but_for_what_is_in_hand(autojump_clock: MockClock) -> None:
    log = Log()
    described = pool(Worker, log, size=3, route="consistent_hash", key="user", shutdown=60)
    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(described, mailbox=Mailbox(2)))

        async def send(user: int) -> None:
            for step in range(40):
                await ref.tell(Job(100 * user + step, 0.01, user=str(user)))

        async with trio.open_nursery() as nursery:
            for user in range(8):
                nursery.start_soon(send, user)
            for size in (5, 2, 7):
                await trio.sleep(0.3)
                await ref.resize(size)
        await ref.stop()
    for user in range(8):
        steps = [name % 100 for name, _ in log.begun if name // 100 == user]
        assert steps == list(range(40))


async def test_who_leaves_finishes_the_message_in_hand_and_no_other(autojump_clock: MockClock) -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(log, "round_robin", 2))
        for name in range(6):
            ref.tell_nowait(Job(name, 1))
        await wait_all_tasks_blocked()
        await ref.resize(1)
        assert trio.current_time() == 1
        assert sorted(log.done) == [(0, 1), (1, 2)]
        assert ref.statistics().queued + 1 == 4
        await trio.sleep(10)
    assert {number for name, number in log.done if name > 1} == {1}
    assert log.names == list(range(6))


async def test_who_does_not_finish_in_time_is_cancelled(autojump_clock: MockClock) -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(log, "shared", 2, shutdown=3))
        await ref.tell(Job(0, 60))
        await ref.tell(Job(1, 60))
        await wait_all_tasks_blocked()
        await ref.resize(1)
        assert trio.current_time() == 3


async def test_a_restart_waits_for_no_resize(autojump_clock: MockClock) -> None:
    """A member that takes long to leave holds up nobody else's restart."""
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(log, "round_robin", 2, shutdown=100))
        ref.tell_nowait(Boom())
        ref.tell_nowait(Job(0, 50))
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ref.resize, 1)
            await wait_all_tasks_blocked()
            with pytest.raises(AskFailed):
                await ref.ask(Boom())
            assert await ref.ask(Job(1)) == 1
            assert trio.current_time() == 0


async def test_a_new_member_gets_nothing_before_it_is_ready(autojump_clock: MockClock) -> None:
    class Slow(Worker):
        async def on_start(self) -> None:
            await trio.sleep(5)

    async with open_supervisor() as sup:
        ref = await sup.start_child(pool(Slow, Log(), size=1, route="round_robin"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ref.resize, 2)
            await wait_all_tasks_blocked()
            assert [await ref.ask(Job(0)) for _ in range(4)] == [1] * 4
        assert {await ref.ask(Job(0)) for _ in range(4)} == {1, 2}
        assert trio.current_time() == 10


async def test_waiting_senders_choose_again_when_somebody_comes(autojump_clock: MockClock) -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(workers(log, "least_loaded", 1, shutdown=100), mailbox=Mailbox(1)))
        for name in range(2):
            await ref.tell(Job(name, 50))
            await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ref.ask, Job(2))
            nursery.start_soon(ref.tell, Job(3))
            await wait_all_tasks_blocked()
            assert ref.statistics().waiting_senders
            await ref.resize(2)
        assert trio.current_time() == 0
        await wait_all_tasks_blocked()
        assert log.names == [2, 3]


async def test_a_member_that_does_not_start_leaves_the_pool_as_it_was() -> None:
    is_broken = False

    class Fragile(Worker):
        async def on_start(self) -> None:
            if is_broken:
                raise OSError("no")

    async with open_supervisor() as sup:
        ref = await sup.start_child(pool(Fragile, Log(), size=2, route="round_robin"))
        is_broken = True
        with pytest.raises(ChildStartError):
            await ref.resize(5)
        assert ref.size == 2
        assert [await ref.ask(Job(0)) for _ in range(3)] == [1, 2, 1]
        is_broken = False
        await ref.resize(3)
        assert {await ref.ask(Job(0)) for _ in range(3)} == {1, 2, 3}


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
async def test_a_bad_size_is_refused(size: Any) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(Log(), "shared", 2))
        with pytest.raises(ValueError, match="size must be"):
            await ref.resize(size)


@pytest.mark.parametrize("route", ["shared", "round_robin"])
async def test_a_member_cannot_wait_for_its_own_end(route: str, autojump_clock: MockClock) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(Log(), route, 2))
        second: ActorRef[Any] = ref.value.child(2)
        with pytest.raises(AskFailed) as caught:
            await second.ask(Call(lambda _worker: ref.resize(1)))
        assert isinstance(caught.value.__cause__, DeadlockError)
        assert ref.size == 2
        await ref.ask(Call(lambda _worker: ref.resize(4)))
        assert ref.size == 4


async def test_resizes_are_done_one_after_the_other(autojump_clock: MockClock) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(Log(), "round_robin", 2))
        async with trio.open_nursery() as nursery:
            for size in (5, 1, 4, 3):
                nursery.start_soon(ref.resize, size)
        assert ref.size == ref.value.count_children().active
        assert ref.size in {1, 3, 4, 5}


async def test_a_cancelled_shrink_goes_on_and_the_next_resize_waits_for_it(autojump_clock: MockClock) -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(log, "round_robin", 2))
        for name in range(2):
            await ref.tell(Job(name, 4))
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await ref.resize(1)
        assert ref.size == 1
        await ref.resize(2)
        assert trio.current_time() == 4
        assert ref.statistics().members[1].status == "running"
        assert log.names == [0, 1]


async def test_a_stop_ends_a_resize(autojump_clock: MockClock) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(Log(), "round_robin", 2))
        ref.tell_nowait(Job(0, 3))
        ref.tell_nowait(Job(1, 3))
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:

            async def resize() -> None:
                with pytest.raises(SupervisorClosed):
                    await ref.resize(1)

            nursery.start_soon(resize)
            await wait_all_tasks_blocked()
            await ref.stop()
        assert trio.current_time() == 3


@pytest.mark.parametrize("route", ["shared", "least_loaded", "consistent_hash", "broadcast"])
def test_a_cancel_anywhere_leaves_nothing_behind(route: str) -> None:
    log = Log()
    sizes: list[bool] = []

    async def scenario() -> None:
        async with open_supervisor() as sup, trio.open_nursery() as nursery:
            ref = await sup.start_child(ChildSpec(workers(log, route, 2), mailbox=Mailbox(1)))
            for name in range(3):
                nursery.start_soon(ref.ask, Job(name, 0.5))
                nursery.start_soon(ref.tell, Job(name, 0.5))
            with trio.CancelScope(shield=True):
                with trio.move_on_after(0.2):
                    await ref.resize(3)
            await ref.resize(4)
            await ref.resize(1)
            sizes.append(ref.value.count_children().active == ref.size == 1)

    assert cancel_everywhere(scenario) > 30
    assert sizes
    assert all(sizes)


@pytest.mark.parametrize("route", ROUTES)
async def test_a_resize_that_is_cancelled_anywhere_leaves_a_pool_that_works(route: str) -> None:
    async def resize(scope: trio.CancelScope, size: int) -> None:
        with scope:
            await ref.resize(size)

    for steps in range(30):
        log = Log()
        async with open_supervisor() as sup:
            ref = await sup.start_child(workers(log, route, 3))
            for size in (6, 1):
                async with trio.open_nursery() as nursery:
                    scope = trio.CancelScope()
                    nursery.start_soon(resize, scope, size)
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            assert 1 <= ref.size <= 6
            await ref.resize(4)
            assert ref.value.count_children() == (4, 4, 0, 4)
            for name in range(20):
                await ref.ask(Job(name))
        assert log.names == sorted([*range(20)] * (4 if route == "broadcast" else 1))


class Storm:
    """Does this and that to a pool, by chance."""

    def __init__(self, ref: PoolRef[Any], dice: random.Random) -> None:
        self.ref = ref
        self.dice = dice
        self.sent = self.asked = self.answered = 0

    async def blow(self) -> None:
        """60 deeds, and the end of all that was asked."""
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                deed = self.dice.choices([self.resize, self.crash, self.stop, self.tell], [1, 1, 1, 4])[0]
                with trio.move_on_after(50):
                    await deed()
                if self.dice.random() < 0.3:
                    await trio.sleep(self.dice.choice([0, 0.05, 2]))
                if self.dice.random() < 0.2:
                    nursery.start_soon(self.ask)
                    self.asked += 1
            await self.resize()

    async def resize(self) -> None:
        with contextlib.suppress(SupervisorClosed):
            await self.ref.resize(self.dice.randint(1, 6))

    async def crash(self) -> None:
        await self.ref.tell(Boom())

    async def stop(self) -> None:
        if self.ref.value is not None and self.ref.value.count_children().active > 1:
            child = self.dice.choice(self.ref.value.which_children())
            await (child.stop() if self.dice.random() < 0.5 else child.stop_now())

    async def tell(self) -> None:
        await self.ref.tell(Job(self.sent, self.dice.choice([0, 0.1, 1])))
        self.sent += 1

    async def ask(self) -> None:
        with contextlib.suppress(AskFailed, ActorStopped):
            await self.ref.ask(Job(-1, self.dice.choice([0, 0.1])))
        self.answered += 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("route", ROUTES)
async def test_a_storm_loses_only_what_was_in_hand(route: str, seed: int, autojump_clock: MockClock) -> None:
    """Resizes, crashes, members stopped by hand, a pool that gives up: all asks end, no message goes astray."""
    log, notices = Log(), Notices()
    described = workers(log, route, 3, intensity=Intensity(3, 1), shutdown=100)
    async with open_supervisor(emit=notices, intensity=Intensity(1000, 1)) as sup:
        ref = await sup.start_child(ChildSpec(described, mailbox=Mailbox(3)))
        storm = Storm(ref, random.Random(seed))
        with trio.fail_after(10_000):
            await storm.blow()
            await trio.sleep(1000)
            assert ref.statistics().queued == 0
        await ref.stop()
    assert storm.answered == storm.asked
    handled = [name for name in log.names if name >= 0]
    if route != "broadcast":
        assert len(handled) == len(set(handled)), "none is handled twice"
        assert storm.sent - len(handled) <= log.cancelled
        assert not [notice for notice in notices.all if isinstance(notice, MessagesLost)]
