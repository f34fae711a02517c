"""Pools: routes over the mailboxes of members, and the members' lives."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors import (
    ActorStopped,
    AskFailed,
    BroadcastRef,
    ChildSpec,
    DeadlockError,
    Intensity,
    Mailbox,
    MailboxFull,
    MessagesLost,
    PoolRef,
    SupervisorClosed,
    open_supervisor,
    pool,
)
from tests.actors.support import Add, Boom, Counter, Hold, Notices, Total
from tests.actors.workers import ROUTES, TO_ONE, WITH_MAILBOXES, Call, Job, Log, Worker, workers

if TYPE_CHECKING:
    from collections.abc import Hashable

    from trio.testing import MockClock

# -- routes ---------------------------------------------------------------------------------------


async def test_round_robin_gives_to_each_in_turn() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(Log(), "round_robin", 3))
        assert isinstance(ref, PoolRef)
        assert [await ref.ask(Job(0)) for _ in range(5)] == [1, 2, 3, 1, 2]


async def test_least_loaded_counts_what_is_in_hand(autojump_clock: MockClock) -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(log, "least_loaded", 3))
        await wait_all_tasks_blocked()
        for name, seconds in enumerate([10, 10, 1]):
            await ref.tell(Job(name, seconds))
        await wait_all_tasks_blocked()
        assert {number for _, number in log.begun} == {1, 2, 3}
        await trio.sleep(2)
        free = next(number for name, number in log.begun if name == 2)
        assert [await ref.ask(Job(9)) for _ in range(3)] == [free] * 3


async def test_random_reaches_everybody() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(Log(), "random", 3))
        assert {await ref.ask(Job(0)) for _ in range(100)} == {1, 2, 3}


async def test_one_key_one_member_in_order() -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(
            ChildSpec(pool(Worker, log, size=4, route="consistent_hash", key="user"), mailbox=Mailbox(2))
        )

        async def send(user: int) -> None:
            for step in range(20):
                await ref.tell(Job(100 * user + step, user=str(user)))

        async with trio.open_nursery() as nursery:
            for user in range(10):
                nursery.start_soon(send, user)
    by_user = defaultdict(list)
    for name, number in log.done:
        by_user[name // 100].append((name % 100, number))
    for steps in by_user.values():
        assert [step for step, _ in steps] == list(range(20))
        assert len({number for _, number in steps}) == 1
    assert len({number for _, number in log.done}) > 1


@pytest.mark.parametrize("route", WITH_MAILBOXES[:3])
async def test_a_full_member_is_passed_over(route: str) -> None:
    log, gate, entered = Log(), trio.Event(), trio.Event()

    async def hold(_worker: Worker) -> None:
        entered.set()
        await gate.wait()

    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(workers(log, route, 2), mailbox=Mailbox(1)))
        await wait_all_tasks_blocked()
        ref.tell_nowait(Call(hold))
        await entered.wait()
        for name in range(40):
            while True:
                try:
                    ref.tell_nowait(Job(name))
                except MailboxFull:
                    await trio.lowlevel.checkpoint()
                else:
                    break
        gate.set()
    assert log.names == list(range(40))


@pytest.mark.parametrize("route", WITH_MAILBOXES)
async def test_tell_waits_while_all_are_full(route: str, autojump_clock: MockClock) -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(workers(log, route, 2, shutdown=99), mailbox=Mailbox(1)))
        for name in range(12):
            await ref.tell(Job(name, 1))
        assert trio.current_time() >= 2
        for _ in range(2 - ref.statistics().queued):
            ref.tell_nowait(Job(12))
        with pytest.raises(MailboxFull) as caught:
            ref.tell_nowait(Job(-1))
        assert caught.value.capacity == 1
        assert ref.statistics().queued <= 2
        with trio.move_on_after(0.01):
            await ref.tell(Job(99))
    assert set(range(12)) <= set(log.names)
    assert 99 not in log.names


@pytest.mark.parametrize("overflow", ["reject", "drop_newest", "drop_oldest"])
async def test_overflow_rules_hold_for_each_member(overflow: Any) -> None:
    log, gate = Log(), trio.Event()

    async def hold(_worker: Worker) -> None:
        await gate.wait()

    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(workers(log, "round_robin", 2), mailbox=Mailbox(2, overflow)))
        for _ in range(2):
            await ref.tell(Call(hold))
        await wait_all_tasks_blocked()
        refused = 0
        for name in range(6):
            try:
                await ref.tell(Job(name))
            except MailboxFull:
                refused += 1
        assert refused == (2 if overflow == "reject" else 0)
        assert ref.statistics().dropped == (0 if overflow == "reject" else 2)
        assert ref.statistics().queued == 4
        gate.set()
    assert log.names == ([2, 3, 4, 5] if overflow == "drop_oldest" else [0, 1, 2, 3])


async def test_a_key_that_a_message_does_not_have_is_the_senders_error() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(pool(Counter, size=2, route="consistent_hash", key="amount"))
        await ref.tell(Add(2))
        with pytest.raises(AttributeError, match="amount"):
            await ref.tell(Total())
        with pytest.raises(AttributeError, match="amount"):
            await ref.ask(Total())


def test_a_key_and_its_route_belong_together() -> None:
    with pytest.raises(ValueError, match="needs a key"):
        pool(Counter, size=1, route="consistent_hash")
    with pytest.raises(ValueError, match="needs a key"):
        pool(Counter, size=1, route="random", key="amount")
    with pytest.raises(TypeError, match="key must be"):
        pool(Counter, size=1, route="consistent_hash", key=3)  # type: ignore[call-overload]


# -- broadcast ------------------------------------------------------------------------------------


async def test_broadcast_tells_all_and_gathers_all_replies() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(pool(Counter, size=3, route="broadcast"))
        assert isinstance(ref, BroadcastRef)
        await ref.tell(Add(2))
        ref.tell_nowait(Add(1))
        assert await ref.ask(Total()) == [3, 3, 3]
        assert [member.queued for member in ref.statistics().members] == [0, 0, 0]


async def test_broadcast_waits_for_the_slowest(autojump_clock: MockClock) -> None:
    async def nap(worker: Worker) -> Hashable:
        await trio.sleep(int(str(worker.ref.id)))
        return worker.ref.id

    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(Log(), "broadcast", 3))
        assert await ref.ask(Call(nap)) == [1, 2, 3]
        assert trio.current_time() == 3
        with trio.move_on_after(1.5) as scope:
            await ref.ask(Call(nap))
        assert scope.cancelled_caught
        assert await ref.ask(Job(0)) == [1, 2, 3]


async def test_the_first_error_ends_a_broadcast_ask(autojump_clock: MockClock) -> None:
    log = Log()

    async def fail_second(worker: Worker) -> None:
        if worker.ref.id == 2:
            raise OSError("second")
        await trio.sleep(5)

    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(log, "broadcast", 3))
        with pytest.raises(AskFailed) as caught:
            await ref.ask(Call(fail_second))
        assert isinstance(caught.value.__cause__, OSError)
        assert trio.current_time() == 0
        await trio.sleep(10)
        await ref.tell(Call(fail_second))
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await ref.ask(Job(7))
        assert [number for _, number in log.done] == [2], "the others were withdrawn"
        assert ref.statistics().queued == 0


async def test_broadcast_with_a_full_member(autojump_clock: MockClock) -> None:
    log = Log()

    async def hold_second(worker: Worker) -> None:
        if worker.ref.id == 2:
            await trio.sleep(5)

    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(workers(log, "broadcast", 2), mailbox=Mailbox(1)))
        await ref.tell(Call(hold_second))
        await wait_all_tasks_blocked()
        await ref.tell(Job(1))
        await wait_all_tasks_blocked()
        with pytest.raises(MailboxFull):
            ref.tell_nowait(Job(2))
        assert log.done == [(1, 1)]
        with trio.move_on_after(1):
            await ref.ask(Job(3))
        assert ref.statistics().waiting_senders is False
        await ref.tell(Job(4))
        assert trio.current_time() == 5
        assert await ref.ask(Job(5)) == [1, 2]
    assert log.names == [1, 1, 3, 4, 4, 5, 5]


async def test_a_broadcast_ask_that_waits_for_its_asker_is_a_deadlock() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(Log(), "broadcast", 3))

        async def ask_all(worker: Worker) -> None:
            if worker.ref.id == 3:
                await ref.ask(Job(0))

        with pytest.raises(AskFailed) as caught:
            await ref.ask(Call(ask_all))
        assert isinstance(caught.value.__cause__, DeadlockError)
        assert "supervisor/workers/3" in caught.value.__cause__.path


# -- members' lives -------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
async def test_a_member_that_restarts_keeps_its_queue(route: str) -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(log, route, 2, intensity=Intensity(9, 9)))
        for name in range(4):
            ref.tell_nowait(Job(name))
        ref.tell_nowait(Boom())
        for name in range(4, 8):
            ref.tell_nowait(Job(name))
        await wait_all_tasks_blocked()
        assert ref.incarnation == 1
        assert sum(member.incarnation for member in ref.statistics().members) == (4 if route == "broadcast" else 3)
    assert log.names == sorted([*range(8)] * (2 if route == "broadcast" else 1))


@pytest.mark.parametrize("route", TO_ONE)
async def test_what_is_queued_outlasts_a_pool_that_gave_up(route: str) -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(log, route, 2, intensity=Intensity(0, 1)))
        await ref.resize(4)
        for name in range(20):
            ref.tell_nowait(Job(name))
        ref.tell_nowait(Boom())
        for name in range(20, 40):
            ref.tell_nowait(Job(name))
        assert await ref.ask(Job(40)) in {1, 2, 3, 4}
        await wait_all_tasks_blocked()
        assert ref.incarnation == 2
        assert ref.size == 2, "it begins as it was described"
        assert ref.value.count_children().active == 2
    assert log.names == list(range(41))


@pytest.mark.parametrize("route", ROUTES)
async def test_a_pool_that_is_stopped_works_off_its_queues(route: str, autojump_clock: MockClock) -> None:
    log, notices = Log(), Notices()
    times = 2 if route == "broadcast" else 1
    async with open_supervisor(emit=notices) as sup:
        ref = await sup.start_child(workers(log, route, 2))
        for name in range(8):
            await ref.tell(Job(name, 0.1))
        await wait_all_tasks_blocked()
        await ref.stop()
        for verb in (ref.tell, ref.ask):
            with pytest.raises(ActorStopped):
                await verb(Job(9))
        with pytest.raises(ActorStopped):
            ref.tell_nowait(Job(9))
        with pytest.raises(SupervisorClosed):
            await ref.resize(3)
    assert log.names == sorted([*range(8)] * times)
    assert not [notice for notice in notices.all if isinstance(notice, MessagesLost)]


@pytest.mark.parametrize("route", ROUTES)
async def test_what_a_stop_has_no_time_for_is_reported(route: str, autojump_clock: MockClock) -> None:
    log, notices = Log(), Notices()
    async with open_supervisor(emit=notices) as sup:
        ref = await sup.start_child(workers(log, route, 1, shutdown=2.5))
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(ActorStopped):
                    await ref.ask(Job(9, 1))

            for name in range(5):
                await ref.tell(Job(name, 1))
            await wait_all_tasks_blocked()
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            await ref.stop()
    assert log.names == [0, 1]
    assert sum(notice.count for notice in notices.all if isinstance(notice, MessagesLost)) == 2


async def test_a_crash_costs_the_queue_when_the_spec_says_so() -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(workers(log, "round_robin", 2), on_crash="dead_letter"))
        ref.tell_nowait(Boom())
        for name in range(4):
            ref.tell_nowait(Job(name))
        await wait_all_tasks_blocked()
    assert log.names == [0, 2]


@pytest.mark.parametrize("route", TO_ONE)
async def test_a_member_that_is_stopped_by_hand_leaves_its_queue_to_the_others(route: str) -> None:
    log = Log()
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(log, route, 3))
        for name in range(30):
            ref.tell_nowait(Job(name))
        await ref.value.child(2).stop_now()
        for name in range(30, 60):
            await ref.tell(Job(name))
        await wait_all_tasks_blocked()
        assert log.names == list(range(60))
        assert {number for name, number in log.done if name >= 30} <= {1, 3}
        await ref.resize(3)
        for name in range(60, 90):
            await ref.tell(Job(name))
        await wait_all_tasks_blocked()
        if route != "shared":
            assert {number for name, number in log.done if name >= 60} == {1, 2, 3}


# -- waiting for each other -----------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
async def test_a_pool_of_one_cannot_ask_itself(route: str) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(Log(), route, 1))
        with pytest.raises(AskFailed) as caught:
            await ref.ask(Call(lambda _worker: ref.ask(Job(0))))
        assert isinstance(caught.value.__cause__, DeadlockError)


@pytest.mark.parametrize("route", WITH_MAILBOXES[:3])
async def test_a_member_asks_another(route: str) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(workers(Log(), route, 2))
        with trio.fail_after(5):
            for _ in range(20):
                assert await ref.ask(Call(lambda _worker: ref.ask(Job(0)))) in {1, 2}


@pytest.mark.parametrize("route", WITH_MAILBOXES)
async def test_a_ring_through_a_pool_is_found(route: str) -> None:
    async with open_supervisor() as sup:
        outside = await sup.start_child(ChildSpec(Worker, Log(), id="outside"))
        ref = await sup.start_child(workers(Log(), route, 3))
        with pytest.raises(AskFailed) as caught, trio.fail_after(5):
            await outside.ask(Call(lambda _one: ref.ask(Call(lambda _two: outside.ask(Job(0))))))
        error: BaseException | None = caught.value
        while isinstance(error, AskFailed):
            error = error.__cause__
        assert isinstance(error, DeadlockError)
        assert "supervisor/outside" in error.path


async def test_a_full_mailbox_of_its_own_is_no_wait() -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(ChildSpec(workers(Log(), "consistent_hash", 1), mailbox=Mailbox(1)))

        async def fill(_worker: Worker) -> None:
            await ref.tell(Job(0))
            await ref.tell(Job(0))

        with pytest.raises(AskFailed) as caught:
            await ref.ask(Call(fill))
        assert isinstance(caught.value.__cause__, MailboxFull)


async def test_members_are_not_controlled_through_the_pool() -> None:
    async with open_supervisor() as sup:
        for route in ("shared", "round_robin"):
            ref = await sup.start_child(workers(Log(), route, 2, name=route))
            with pytest.raises(TypeError, match="one by one"):
                await ref.suspend()


async def test_statistics_count_the_pool_and_each_member() -> None:
    gate = trio.Event()
    async with open_supervisor() as sup:
        ref = await sup.start_child(pool(Counter, size=2, route="round_robin", name="p"))
        for _ in range(2):
            entered = trio.Event()
            await ref.tell(Hold(gate, entered))
            await entered.wait()
        for _ in range(3):
            await ref.tell(Add())
        statistics = ref.statistics()
        assert (statistics.size, statistics.queued, statistics.capacity) == (2, 3, 128)
        assert [(member.number, member.queued, member.status) for member in statistics.members] == [
            (1, 2, "running"),
            (2, 1, "running"),
        ]
        gate.set()
        await wait_all_tasks_blocked()
        assert ref.statistics().queued == 0
        assert ref.statistics().accepted == 5
    assert ref.statistics().members == ()
