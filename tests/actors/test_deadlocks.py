"""Waits that could never end are errors, and waits that end are not (A3, C14, C15)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

from omniactors import (
    Actor,
    ActorRef,
    ActorStopped,
    AskFailed,
    ChildSpec,
    DeadlockError,
    DynamicSupervisor,
    Mailbox,
    MailboxFull,
    Request,
    on,
    open_supervisor,
    pool,
    subtree,
)
from tests.actors.support import Boom, Counter, Total

if TYPE_CHECKING:
    from trio.testing import MockClock


class Ping(Request[str]):
    """Answered at once."""


class Relay(Request[str]):
    """Passed on along `route`: each actor asks the next."""

    def __init__(self, *route: ActorRef[Any], message: object = None, within: float = math.inf) -> None:
        self.route = route
        self.message = message
        self.within = within


class Node(Actor[Ping | Relay]):
    """Asks others while it handles a message."""

    @on
    async def ping(self, _message: Ping) -> str:
        return "pong"

    @on
    async def relay(self, message: Relay) -> str:
        if not message.route:
            return "end"
        first, *rest = message.route
        with trio.move_on_after(message.within):
            await trio.lowlevel.checkpoint()
            asked = Relay(*rest, message=message.message) if message.message is None or rest else message.message
            answer: str = await first.ask(asked)
            return answer
        return "late"


class Slow(Node):
    """Takes its time before it asks."""

    async def relay(self, message: Relay) -> str:
        await trio.sleep(2)
        return await super().relay(message)


def deadlock(error: BaseException | None) -> DeadlockError:
    """The DeadlockError under a chain of failed asks."""
    while isinstance(error, AskFailed):
        error = error.__cause__
    assert isinstance(error, DeadlockError)
    return error


@pytest.mark.parametrize("length", [1, 2, 3, 6])
async def test_a_chain_that_comes_back_is_an_error_with_its_path(length: int) -> None:
    async with open_supervisor() as sup:
        nodes = [await sup.start_child(ChildSpec(Node, id=f"n{number}")) for number in range(length)]
        with pytest.raises(AskFailed) as caught:
            await nodes[0].ask(Relay(*nodes[1:], nodes[0]))
        names = [f"supervisor/n{number}" for number in range(length)]
        assert deadlock(caught.value).path == (names[-1], *names)


async def test_crossing_asks_are_found() -> None:
    """One of the two fails, the other then ends."""
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        one, two = [await sup.start_child(Node) for _ in range(2)]
        failures: list[str] = []

        async def ask(first: ActorRef[Any], second: ActorRef[Any]) -> None:
            try:
                await first.ask(Relay(second))
            except AskFailed as error:
                deadlock(error)
                failures.append(first.path)

        nursery.start_soon(ask, one, two)
        nursery.start_soon(ask, two, one)
    assert failures


async def test_a_reply_on_its_way_is_no_wait() -> None:
    """B answers A and, before A has run, asks A: that is no ring."""
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        a, b = [await sup.start_child(Node) for _ in range(2)]

        class Gate(Actor[int]):
            @on
            async def wait(self, _number: int) -> None:
                await gate.wait()

        gate = trio.Event()
        blocker = await sup.start_child(Gate)
        nursery.start_soon(b.ask, Relay(blocker, message=1))  # b is busy, so both messages queue up behind it
        await wait_all_tasks_blocked()
        nursery.start_soon(a.ask, Relay(b, message=Ping()))
        await wait_all_tasks_blocked()

        class Direct(Node):
            pass

        nursery.start_soon(b.ask, Relay(a, message=Ping()))
        await wait_all_tasks_blocked()
        gate.set()


async def test_an_ask_that_gave_up_is_no_wait(autojump_clock: MockClock) -> None:
    """A's ask ran into its time limit, so B may ask A."""
    async with open_supervisor() as sup:
        a, b = await sup.start_child(Node), await sup.start_child(Slow)
        assert await a.ask(Relay(b, message=Relay(a, message=Ping()), within=1)) == "late"
        assert await b.ask(Relay(a, message=Ping())) == "pong"


async def test_background_tasks_of_an_actor_are_not_the_actor() -> None:
    class Parent(Actor[Ping | Total]):
        @on
        async def ping(self, _message: Ping) -> str:
            return "pong"

        @on
        async def total(self, _message: Total) -> int:
            async def ask_self() -> None:
                with pytest.raises(trio.TooSlowError), trio.fail_after(0):
                    await self.ref.ask(Ping())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_self)
            return 1

    async with open_supervisor() as sup:
        assert await (await sup.start_child(Parent)).ask(Total()) == 1


class Fill(Request[None]):
    """Tells `target` more than its mailbox holds."""

    def __init__(self, target: ActorRef[Any]) -> None:
        self.target = target


class Filler(Actor[Fill | int]):
    """Tells others until their mailboxes are full."""

    @on
    async def fill(self, message: Fill) -> None:
        for number in range(5):
            await message.target.tell(number)

    @on
    async def number(self, _number: int) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_full_mailbox_of_ones_own_is_full_at_once() -> None:
    async with open_supervisor() as sup:
        filler = await sup.start_child(ChildSpec(Filler, mailbox=Mailbox(1)))
        with pytest.raises(AskFailed) as caught:
            await filler.ask(Fill(filler))
        assert isinstance(caught.value.__cause__, MailboxFull)


@pytest.mark.parametrize("length", [2, 4])
async def test_a_ring_of_full_mailboxes_is_an_error(length: int) -> None:
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        ring = [await sup.start_child(ChildSpec(Filler, mailbox=Mailbox(1))) for _ in range(length)]
        failures: list[DeadlockError] = []

        async def fill(filler: ActorRef[Any], target: ActorRef[Any]) -> None:
            try:
                await filler.ask(Fill(target))
            except AskFailed as error:
                failures.append(deadlock(error))

        for filler, target in zip(ring, [*ring[1:], ring[0]], strict=True):
            nursery.start_soon(fill, filler, target)
    assert failures


# -- pools ----------------------------------------------------------------------------------------


async def test_a_pool_of_one_cannot_ask_itself() -> None:
    async with open_supervisor() as sup:
        nodes = await sup.start_child(pool(Node, size=1))
        with pytest.raises(AskFailed) as caught:
            await nodes.ask(Relay(nodes))
        deadlock(caught.value)


async def test_a_pool_asks_itself_while_one_of_its_actors_is_free() -> None:
    async with open_supervisor() as sup:
        nodes = await sup.start_child(pool(Node, size=3))
        assert await nodes.ask(Relay(nodes, nodes)) == "end"
        with pytest.raises(AskFailed) as caught:
            await nodes.ask(Relay(nodes, nodes, nodes))
        deadlock(caught.value)


async def test_an_actor_of_a_pool_that_handles_a_message_is_the_one_waited_for() -> None:
    """That others of the pool are free does not help the asker."""
    async with open_supervisor() as sup:
        nodes, outside = await sup.start_child(pool(Node, size=3)), await sup.start_child(Node)
        with pytest.raises(AskFailed) as caught:
            await outside.ask(Relay(nodes, outside))
        deadlock(caught.value)
        assert await outside.ask(Relay(nodes, nodes)) == "end"


# -- with a supervisor in the ring ----------------------------------------------------------------


class AsksAtStart(Node):
    """Asks another while it is started."""

    def __init__(self, target: ActorRef[Any], message: object) -> None:
        self.target = target
        self.message = message

    async def on_start(self) -> None:
        await self.target.ask(self.message)


class Starter(Actor[Total]):
    """Starts a child that asks it."""

    @on
    async def total(self, _message: Total) -> int:
        await self.supervisor.start_child(AsksAtStart, self.ref, Total())
        return 1


async def test_a_child_that_asks_its_starter_while_it_starts_is_told() -> None:
    async with open_supervisor() as sup:
        starter = await sup.start_child(Starter)
        with pytest.raises(AskFailed) as caught:
            await starter.ask(Total())
        start_error = caught.value.__cause__
        assert start_error is not None
        deadlock(start_error.__cause__)


async def test_the_same_under_a_dynamic_supervisor() -> None:
    class Other(Actor[Total]):
        @on
        async def total(self, _message: Total) -> int:
            await dynamic.start_child(AsksAtStart, self.ref, Total())
            return 1

    dynamic = DynamicSupervisor()
    async with open_supervisor(dynamic) as sup:
        other = await sup.start_child(Other)
        with pytest.raises(AskFailed) as caught:
            await other.ask(Total())
        start_error = caught.value.__cause__
        assert start_error is not None
        deadlock(start_error.__cause__)


async def test_a_child_that_starts_another_while_it_is_started_is_told() -> None:
    """OTP deadlocks here."""

    class Early(Node):
        async def on_start(self) -> None:
            with pytest.raises(DeadlockError):
                await self.supervisor.start_child(Node)

    async def early() -> None:
        with pytest.raises(DeadlockError):
            await sup.start_child(Node)

    async def function(*, task_status: trio.TaskStatus[None]) -> None:
        await early()
        task_status.started()
        await trio.sleep_forever()

    class Later(Early):
        async def on_start(self) -> None:
            await early()

    async with open_supervisor() as sup:
        await sup.start_child(Early)
        await sup.start_child(Later)
        await sup.start_child(function)
        assert sup.count_children().active == 3


async def test_a_dynamic_child_may_start_another_while_it_is_started() -> None:
    class Early(Node):
        async def on_start(self) -> None:
            await self.supervisor.start_child(Node)

    async with DynamicSupervisor() as sup:
        await sup.start_child(Early)
        assert sup.count_children().active == 2


@pytest.mark.parametrize("is_nested", [False, True])
async def test_a_start_that_asks_a_sibling_which_is_down_fails(is_nested: bool) -> None:
    """The sibling's restart waits for this very start to end: without the error, both wait for ever."""
    crashed = trio.Event()

    class Needy(Node):
        async def on_start(self) -> None:
            target = sup.child("target")
            assert isinstance(target, ActorRef)
            if not crashed.is_set():
                await target.tell(Boom())
                await wait_all_tasks_blocked()
                crashed.set()
                with pytest.raises(DeadlockError):
                    await target.ask(Total())

    async with open_supervisor(ChildSpec(Counter, id="target")) as sup:
        await sup.start_child(subtree(Needy) if is_nested else Needy)
        assert crashed.is_set()
        await wait_all_tasks_blocked()
        assert sup.child("target").incarnation == 2


async def test_an_ask_that_was_under_way_when_the_sibling_went_down_fails_too() -> None:
    """As above, but the wait was there first; and a function child waits as an actor does."""
    seen: list[str] = []

    class Fragile(Counter):
        @on
        async def ping(self, _message: Ping) -> str:
            raise AssertionError("never handled")

    async def needy(*, task_status: trio.TaskStatus[None]) -> None:
        target = sup.child("target")
        assert isinstance(target, ActorRef)
        await target.tell(Boom())
        try:
            await target.ask(Ping())
        except DeadlockError as error:
            seen.extend(error.path)
        task_status.started()
        await trio.sleep_forever()

    async with open_supervisor(ChildSpec(Fragile, id="target")) as sup:
        await sup.start_child(ChildSpec(needy, id="needy"))
        assert set(seen) == {"supervisor", "supervisor/needy", "supervisor/target"}


async def test_stopping_a_dependent_for_its_groups_restart_does_not_wait_for_the_failed_one(
    autojump_clock: MockClock,
) -> None:
    """rest_for_one: the dependent waits for the one that failed, which waits for the dependent's end."""
    async with open_supervisor(strategy="rest_for_one") as sup, trio.open_nursery() as nursery:

        class Holder(Actor[Boom | Ping]):
            @on
            async def boom(self, _message: Boom) -> None:
                await gate.wait()
                raise ValueError

            @on
            async def ping(self, _message: Ping) -> str:
                return "pong"

        gate = trio.Event()
        first = await sup.start_child(Holder)
        dependent = await sup.start_child(ChildSpec(Node, shutdown=math.inf))
        await first.tell(Boom())

        async def ask() -> None:
            with pytest.raises(AskFailed) as caught:
                await dependent.ask(Relay(first, message=Ping()))
            deadlock(caught.value)

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        gate.set()
        await wait_all_tasks_blocked()
        assert trio.current_time() == 0
        assert (first.incarnation, dependent.incarnation) == (2, 2)
        assert await dependent.ask(Relay(first, message=Ping())) == "pong"


async def test_an_actor_cannot_wait_for_its_own_end() -> None:
    """Nor for that of a supervisor it is under; trees of the same name are different trees."""

    class Suicidal(Actor[int]):
        @on
        async def die(self, which: int) -> None:
            await [self.ref.stop, self.ref.stop_now, sup.child("inner").stop, other.stop][which]()

    async with open_supervisor(Counter) as elsewhere, open_supervisor() as sup:
        other = elsewhere.which_children()[0]
        tree = await sup.start_child(subtree(ChildSpec(Suicidal, id="Counter-1"), name="inner"))
        suicidal = tree.value.child("Counter-1")
        for which in range(3):
            with pytest.raises(AskFailed) as caught:
                await suicidal.ask(which)
            deadlock(caught.value)
        await suicidal.ask(3)
        assert other.status == "stopped"


async def test_a_function_may_stop_itself() -> None:
    """Being stopped cancels it, which ends its wait."""

    async def function() -> None:
        await sup.stop_child("function-1")

    async with open_supervisor() as sup:
        ref = await sup.start_child(function)
        assert (await ref.wait_stopped()).kind == "shutdown"


async def test_an_actor_that_is_being_stopped_and_asks_its_supervisor_is_told(autojump_clock: MockClock) -> None:
    """Its supervisor waits for it: with shutdown=inf for ever."""
    gate = trio.Event()
    told: list[BaseException] = []

    class Late(Counter):
        @on
        async def ping(self, _message: Ping) -> str:
            await gate.wait()
            try:
                await self.supervisor.start_child(Counter)
            except DeadlockError as error:
                told.append(error)
            return "pong"

    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        late = await sup.start_child(ChildSpec(Late, shutdown=math.inf))
        nursery.start_soon(late.ask, Ping())
        await wait_all_tasks_blocked()
        nursery.start_soon(late.stop)
        await wait_all_tasks_blocked()
        gate.set()
    assert len(told) == 1


async def test_goodbyes_to_a_sibling_that_is_down_fail_at_once(autojump_clock: MockClock) -> None:
    """While all stops nothing is restarted, so nothing is waited for."""

    class Polite(Counter):
        async def on_stop(self, reason: object) -> None:
            first = sup.child("first")
            assert isinstance(first, ActorRef)
            await first.tell(Boom())
            with pytest.raises(ActorStopped):
                await first.ask(Total())
            left.append(reason)

    left: list[object] = []
    async with open_supervisor(ChildSpec(Counter, id="first"), ChildSpec(Polite, shutdown=math.inf)) as sup:
        pass
    assert len(left) == 1
    assert trio.current_time() == 0
