"""A cancel before every single step of starting, asking, telling, restarting and stopping (C2, C5, C8, C10, C12).

`cancel_everywhere` itself checks that no task is left and that nothing hangs; the `Ledger` checks
that whoever started has ended, in the right order.
"""

from __future__ import annotations

import contextlib
import math
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
    ChildExited,
    ChildSpec,
    ChildStarted,
    ChildStartError,
    ChildStartFailed,
    ChildStopped,
    Down,
    DynamicSupervisor,
    GaveUp,
    Intensity,
    Mailbox,
    NoReply,
    OmniActorsError,
    ReplyHandle,
    Request,
    SupervisorClosed,
    on,
    open_supervisor,
    pool,
    run_supervisor,
    subtree,
)
from tests.actors.otp import statement
from tests.actors.support import HANG, Add, Boom, Counter, Hold, Total, cancel_everywhere

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from omniactors import ExitReason, Supervisor

OFTEN = Intensity(100, 5)


class Ledger:
    """Who lives, by the notices; `order` are the children of the static supervisors, in start order."""

    def __init__(self, order: Sequence[str] = ()) -> None:
        self._rank = {path: rank for rank, path in enumerate(order)}
        self._living: set[str] = set()
        self._stopped_last: dict[str, str] = {}
        self._faults: list[str] = []

    def __call__(self, notice: object) -> None:
        """Take a notice, and note what is wrong with it."""
        match notice:
            case ChildStarted(path):
                self._expect(path not in self._living, f"{path} started twice")
                self._living.add(path)
                self._stopped_last.pop(_parent(path), None)
            case ChildStopped(path):
                self._ends(path)
                self._expect_order(path)
            case ChildExited(path):
                self._ends(path)
            case ChildStartFailed(path):
                self._expect_no_children(path)

    def settle(self) -> None:
        """Check one run, and begin anew."""
        faults, left = self._faults, self._living
        self._faults, self._living, self._stopped_last = [], set(), {}
        assert not faults
        assert not left

    def _ends(self, path: str) -> None:
        self._expect(path in self._living, f"{path} ended and did not live")
        self._living.discard(path)
        self._expect_no_children(path)

    def _expect_no_children(self, path: str) -> None:
        orphans = [other for other in self._living if other.startswith(f"{path}/")]
        self._expect(not orphans, f"{path} ended before {orphans}")

    def _expect_order(self, path: str) -> None:
        if path in self._rank:
            before = self._stopped_last.get(_parent(path), path)
            self._expect(self._rank[path] <= self._rank[before], f"{path} stopped after {before}")
            self._stopped_last[_parent(path)] = path

    def _expect(self, holds: bool, fault: str) -> None:
        if not holds:
            self._faults.append(fault)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


class Trail:
    """How often something was begun and ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0

    @asynccontextmanager
    async def step(self) -> AsyncIterator[None]:
        """Count what happens inside."""
        self.begun += 1
        try:
            yield
        finally:
            self.ended += 1

    def settle(self) -> None:
        """Check one run, and begin anew."""
        assert self.begun == self.ended
        self.begun = self.ended = 0


async def forever() -> None:
    await trio.sleep_forever()


async def slow_start(seconds: float, *, task_status: trio.TaskStatus[None]) -> None:
    await trio.sleep(seconds)
    task_status.started()
    await trio.sleep_forever()


def as_actor(ref: object) -> ActorRef[Any]:
    assert isinstance(ref, ActorRef)
    return ref


# -- starting and stopping ------------------------------------------------------------------------


def test_nested_trees() -> None:
    """C5: each supervisor stops its own in reverse order, and ends after them."""
    order = ["r/a", "r/tree", "r/tree/b", "r/tree/inner", "r/tree/inner/c", "r/tree/inner/d", "r/tree/e", "r/f"]
    ledger = Ledger(order)

    async def scenario() -> None:
        inner = subtree(ChildSpec(Counter, id="c"), ChildSpec(slow_start, 1, id="d"), name="inner")
        tree = subtree(ChildSpec(forever, id="b"), inner, ChildSpec(Counter, id="e"), name="tree")
        async with open_supervisor(
            ChildSpec(Counter, id="a"), tree, ChildSpec(slow_start, 1, id="f"), name="r", emit=ledger
        ) as sup:
            await as_actor(sup.child("tree").value.child("inner").value.child("c")).ask(Total())

    assert cancel_everywhere(scenario, ledger.settle) > 30


def test_a_tree_in_the_hosts_nursery() -> None:
    ledger = Ledger(["r/a", "r/b", "r/c"])

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            tree = subtree(*(ChildSpec(slow_start, 1, id=name) for name in "abc"), name="r")
            sup: Supervisor = await nursery.start(lambda **status: run_supervisor(tree, emit=ledger, **status))
            assert sup.count_children().active == 3
            nursery.cancel_scope.cancel()

    assert cancel_everywhere(scenario, ledger.settle) > 20


@statement(15, "faulty_application_shutdown")
def test_a_start_that_fails_below() -> None:
    """Who was started before is stopped, in reverse order."""
    ledger = Ledger(["r/a", "r/tree", "r/tree/b", "r/tree/c"])

    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(1)
        raise OSError

    async def scenario() -> None:
        tree = subtree(ChildSpec(Counter, id="b"), ChildSpec(Counter, id="c"), ChildSpec(fails, id="x"), name="tree")
        with contextlib.suppress(ChildStartError):
            async with open_supervisor(ChildSpec(Counter, id="a"), tree, name="r", emit=ledger):
                raise AssertionError

    assert cancel_everywhere(scenario, ledger.settle) > 20


def test_start_stop_restart_and_delete() -> None:
    """C8: each request is carried out or refused, whoever gives it up."""
    ledger = Ledger()

    async def scenario() -> None:
        async with open_supervisor(ChildSpec(slow_start, 1, id="a"), name="r", emit=ledger) as sup:
            await sup.stop_child("a")
            await sup.restart_child("a")
            await sup.child("a").stop_now()
            await sup.delete_child("a")
            await sup.start_child(ChildSpec(slow_start, 1, id="a"))

    assert cancel_everywhere(scenario, ledger.settle) > 20


def test_requests_that_are_given_up_leave_the_supervisor_in_order() -> None:
    """C8: the client is cancelled, the tree is not, and goes on."""
    ledger = Ledger()

    async def client(sup: Supervisor) -> None:
        await sup.stop_child("a")
        await sup.restart_child("a")
        await sup.start_child(ChildSpec(slow_start, 1, id="b"))
        await sup.child("b").stop()
        await sup.delete_child("b")

    async def scenario() -> None:
        with trio.CancelScope(shield=True):
            async with open_supervisor(ChildSpec(slow_start, 1, id="a"), name="r", emit=ledger) as sup:
                await unshielded(client, sup)
                await wait_all_tasks_blocked()
                for ref in sup.which_children():
                    assert ref.status in ("running", "stopped")
                    await ref.stop()
                    await sup.restart_child(ref.id)
                    assert ref.status == "running"
                await sup.start_child(ChildSpec(slow_start, 1, id="c"))
                assert sup.count_children().active == sup.count_children().specs

    assert cancel_everywhere(scenario, ledger.settle) > 15


async def unshielded(client: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run `client` so that an outer cancellation reaches it, and ends with it, though a shield is around."""
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.shield = False
        await client(*args)


@statement(34, "child_adm", "extra_return")
@statement(36, "child_adm", "child_adm_simple")
def test_stopping_the_same_child_from_many_sides() -> None:
    """Stop, stop_now and wait_stopped all return; the same with the end of the tree meanwhile."""
    ledger = Ledger(["r/a", "r/b"])
    trail = Trail()

    async def waits(verb: Callable[[], Awaitable[object]]) -> None:
        async with trail.step():
            with contextlib.suppress(SupervisorClosed):
                await verb()

    async def scenario() -> None:
        async with (
            open_supervisor(ChildSpec(Counter, id="a"), ChildSpec(Counter, id="b"), name="r", emit=ledger) as sup,
            trio.open_nursery() as nursery,
        ):
            ref = as_actor(sup.child("b"))
            gate, entered = trio.Event(), trio.Event()
            await ref.tell(Hold(gate, entered))
            await entered.wait()
            for verb in (ref.stop, ref.stop, ref.stop_now, ref.wait_stopped):
                nursery.start_soon(waits, verb)

    def check() -> None:
        ledger.settle()
        trail.settle()

    assert cancel_everywhere(scenario, check) > 15


def test_goodbyes() -> None:
    """Who says goodbye asks those that stop after it; nobody waits for ever."""
    ledger = Ledger(["r/a", "r/b", "r/c"])

    class Polite(Counter):
        async def on_stop(self, reason: ExitReason) -> None:
            for ref in self.supervisor.which_children():
                if ref.id != self.ref.id:
                    with contextlib.suppress(ActorStopped):
                        await as_actor(ref).ask(Total())

    async def scenario() -> None:
        specs = [ChildSpec(Polite, id=name, shutdown=math.inf) for name in "abc"]
        async with open_supervisor(*specs, name="r", emit=ledger) as sup:
            for ref in sup.which_children():
                await as_actor(ref).tell(Add())

    assert cancel_everywhere(scenario, ledger.settle) > 20


# -- asking and telling ---------------------------------------------------------------------------


class Forward(Request[int]):
    """Asks the first of `route` to ask the rest."""

    def __init__(self, *route: ActorRef[Any]) -> None:
        self.route = route


class Link(Actor[Forward]):
    """One of a chain."""

    @on
    async def forward(self, message: Forward) -> int:
        if not message.route:
            return 0
        await trio.sleep(1)
        first, *rest = message.route
        return 1 + int(await first.ask(Forward(*rest)))


def test_a_chain_of_asks() -> None:
    """C12: the asker is cancelled; the chain works on, and is free for the next."""

    async def scenario() -> None:
        with trio.CancelScope(shield=True):
            async with open_supervisor(*[Link] * 3) as sup:
                one, two, three = (as_actor(sup.child(f"Link-{number}")) for number in (1, 2, 3))

                async def ask() -> None:
                    assert await one.ask(Forward(two, three)) == 2

                await unshielded(ask)
                assert await one.ask(Forward(two, three)) == 2
                assert [ref.incarnation for ref in (one, two, three)] == [1, 1, 1]

    assert cancel_everywhere(scenario) > 10


@pytest.mark.parametrize("capacity", [1, 100])
@pytest.mark.parametrize("shutdown", [0, 5])
@statement(91)
def test_asks_end_though_the_tree_is_cancelled_and_the_askers_are_not(capacity: int, shutdown: float) -> None:
    """Each ask ends with a reply or with an error that is not a time limit's."""
    trail = Trail()
    ends: list[str] = []

    async def ask(ref: ActorRef[Any], message: object) -> None:
        with trio.CancelScope(shield=True), trio.fail_after(HANG / 2):
            async with trail.step():
                try:
                    await ref.ask(message)
                except (ActorStopped, AskFailed) as error:
                    ends.append(type(error).__name__)
                else:
                    ends.append("reply")

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            spec = ChildSpec(Counter, id="a", mailbox=Mailbox(capacity), shutdown=shutdown)
            tree = subtree(spec, name="tree", intensity=OFTEN)
            crew = pool(Counter, size=2, name="crew", intensity=OFTEN, shutdown=shutdown)
            async with open_supervisor(tree, crew, spec, intensity=OFTEN) as sup:
                for ref in map(as_actor, (sup.child("tree").value.child("a"), sup.child("crew"), sup.child("a"))):
                    for message in (Total(), Boom(), Total(), Add(), Total()):
                        nursery.start_soon(ask, ref, message)
                await trio.sleep(1)

    assert cancel_everywhere(scenario, trail.settle) > 30
    assert set(ends) == {"reply", "AskFailed", "ActorStopped"}


def test_tells_that_wait_for_room() -> None:
    """C12: a cancelled tell was not sent, a finished one is handled once."""
    counts: list[tuple[int, int, int]] = []

    async def scenario() -> None:
        sent = begun = 0

        async def fill(ref: ActorRef[Any]) -> None:
            nonlocal sent, begun
            for _ in range(6):
                begun += 1
                await ref.tell(Add())
                sent += 1

        with trio.CancelScope(shield=True):
            async with open_supervisor(ChildSpec(Counter, id="a", mailbox=Mailbox(1))) as sup:
                ref = as_actor(sup.child("a"))
                async with trio.open_nursery() as nursery:
                    nursery.cancel_scope.shield = False
                    nursery.start_soon(fill, ref)
                    nursery.start_soon(fill, ref)
                counts.append((sent, await ref.ask(Total()), begun))

    def check() -> None:
        sent, handled, begun = counts[-1]
        assert sent == handled
        assert begun - sent <= 2

    assert cancel_everywhere(scenario, check) > 15


# -- restarts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
@pytest.mark.parametrize("backoff", [None, Backoff(initial=1)])
@statement(56)
def test_group_restarts_with_starts_that_fail(strategy: Any, backoff: Backoff | None) -> None:
    """C7: the group is stopped in reverse order, however far its restart had come."""
    ledger = Ledger(["r/a", "r/b", "r/c", "r/d"])
    starts = 0

    class Unsure(Counter):
        async def on_start(self) -> None:
            nonlocal starts
            starts += 1
            await trio.sleep(1)
            if starts in (2, 3):
                raise OSError

    async def scenario() -> None:
        nonlocal starts
        starts = 0
        specs = [
            ChildSpec(kind, id=name) for name, kind in zip("abcd", (Counter, Counter, Unsure, Counter), strict=True)
        ]
        async with open_supervisor(
            *specs, strategy=strategy, intensity=OFTEN, backoff=backoff, name="r", emit=ledger
        ) as sup:
            for name in "cb":
                await as_actor(sup.child(name)).tell(Boom())
                assert await as_actor(sup.child(name)).ask(Total()) == 0

    assert cancel_everywhere(scenario, ledger.settle) > 30


def test_escalation() -> None:
    """C7: a subtree gives up and is restarted; then its parent gives up."""
    ledger = Ledger(["r/tree", "r/tree/a", "r/tree/b", "r/c"])

    async def scenario() -> None:
        tree = subtree(ChildSpec(Counter, id="a"), ChildSpec(Counter, id="b"), name="tree", intensity=Intensity(0, 5))
        with contextlib.suppress(GaveUp):
            async with open_supervisor(
                tree, ChildSpec(Counter, id="c"), intensity=Intensity(1, 5), name="r", emit=ledger
            ) as sup:
                for _ in range(2):
                    with contextlib.suppress(OmniActorsError):
                        await as_actor(sup.child("tree").value.child("a")).ask(Boom())
                    await wait_all_tasks_blocked()
                raise AssertionError

    assert cancel_everywhere(scenario, ledger.settle) > 30


def test_significant_children() -> None:
    """S8: the end of one ends all, in order."""
    ledger = Ledger(["r/a", "r/b"])

    async def scenario() -> None:
        specs = [
            ChildSpec(Counter, id="a"),
            ChildSpec(trio.sleep, 1, id="x", significant=True),
            ChildSpec(forever, id="b"),
        ]
        async with open_supervisor(*specs, auto_shutdown="any_significant", name="r", emit=ledger):
            await trio.sleep_forever()

    assert cancel_everywhere(scenario, ledger.settle) > 10


# -- pools and dynamic supervisors ----------------------------------------------------------------


def test_pools() -> None:
    ledger = Ledger(["r/a", "r/crew", "r/b"])

    async def scenario() -> None:
        crew = pool(Counter, size=3, name="crew", intensity=OFTEN)
        async with (
            open_supervisor(ChildSpec(Counter, id="a"), crew, ChildSpec(Counter, id="b"), name="r", emit=ledger) as sup,
            trio.open_nursery() as nursery,
        ):
            ref = as_actor(sup.child("crew"))
            for message in (Add(), Boom(), Add(), Boom()):
                nursery.start_soon(ref.tell, message)
            for _ in range(3):
                nursery.start_soon(ref.ask, Total())

    assert cancel_everywhere(scenario, ledger.settle) > 30


def test_a_pool_goes_on_when_its_askers_give_up() -> None:
    """C12: no message of others is lost, no actor of the pool is stuck."""

    async def scenario() -> None:
        with trio.CancelScope(shield=True):
            async with open_supervisor() as sup:
                crew = await sup.start_child(pool(Link, size=2))

                async def ask() -> None:
                    await crew.ask(Forward(crew))
                    await crew.ask(Forward(crew))

                await unshielded(ask)
                assert await crew.ask(Forward(crew)) == 1
                assert crew.statistics().queued == 0

    assert cancel_everywhere(scenario) > 10


def test_dynamic_supervisors_with_trees_below() -> None:
    ledger = Ledger(["d/tree/a", "d/tree/b"])

    async def scenario() -> None:
        tree = subtree(ChildSpec(Counter, id="a"), ChildSpec(slow_start, 1, id="b"), name="tree")
        async with DynamicSupervisor(name="d", emit=ledger, intensity=OFTEN) as sup, trio.open_nursery() as nursery:
            nursery.start_soon(sup.start_child, tree)
            for seconds in (0, 1, 2):
                nursery.start_soon(sup.start_child, slow_start, seconds)
            counter = await sup.start_child(Counter)
            await counter.tell(Boom())
            assert await counter.ask(Total()) == 0
            nursery.start_soon(counter.stop)
            nursery.start_soon(counter.stop_now)

    assert cancel_everywhere(scenario, ledger.settle) > 30


def test_a_dynamic_supervisor_as_a_child_that_is_restarted() -> None:
    ledger = Ledger()

    async def scenario() -> None:
        dynamic = DynamicSupervisor(name="d", intensity=Intensity(0, 5))
        async with open_supervisor(dynamic, name="r", emit=ledger):
            counter = await dynamic.start_child(Counter)
            await dynamic.start_child(slow_start, 1)
            with contextlib.suppress(AskFailed):
                await counter.ask(Boom())
            await counter.wait_stopped()
            with contextlib.suppress(SupervisorClosed):
                await dynamic.start_child(slow_start, 1)

    assert cancel_everywhere(scenario, ledger.settle) > 20


# -- resources ------------------------------------------------------------------------------------


class Owner(Counter):
    """Holds a nursery with a task of its own, a cancel scope, and something that takes its time to close."""

    def __init__(self, trail: Trail) -> None:
        super().__init__()
        self._trail = trail

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with self._trail.step(), trio.open_nursery() as nursery:
            nursery.start_soon(self._heartbeat)
            with trio.CancelScope() as scope:
                try:
                    await trio.sleep(1)
                    yield
                finally:
                    with trio.move_on_after(1, shield=True):
                        await trio.sleep(0.5)
            assert not scope.cancel_called
            nursery.cancel_scope.cancel()

    async def _heartbeat(self) -> None:
        async with self._trail.step():
            await trio.sleep_forever()


@pytest.mark.parametrize("shutdown", [0, 5])
def test_lifespans_with_nurseries_and_cancel_scopes(shutdown: float) -> None:
    """C10: resources are left in the task and the order in which they were entered, however it ends."""
    ledger, trail = Ledger(["r/a", "r/b"]), Trail()

    async def scenario() -> None:
        specs = [ChildSpec(Owner, trail, id=name, shutdown=shutdown) for name in "ab"]
        async with open_supervisor(*specs, strategy="one_for_all", intensity=OFTEN, name="r", emit=ledger) as sup:
            ref = as_actor(sup.child("a"))
            await ref.tell(Boom())
            assert await ref.ask(Total()) == 0
            await sup.child("b").stop()

    def check() -> None:
        ledger.settle()
        trail.settle()

    assert cancel_everywhere(scenario, check) > 30


def test_a_crash_in_a_background_task_of_a_lifespan_restarts_the_actor() -> None:
    """C6, C11: no task of one life is left when the next is ready."""
    ledger, trail = Ledger(["r/a"]), Trail()
    overlaps: list[int] = []

    class Faulty(Owner):
        async def on_start(self) -> None:
            overlaps.append(self._trail.begun - self._trail.ended)

        async def _heartbeat(self) -> None:
            async with self._trail.step():
                await trio.sleep(2)
                raise OSError

    async def scenario() -> None:
        async with open_supervisor(ChildSpec(Faulty, trail, id="a"), intensity=OFTEN, name="r", emit=ledger) as sup:
            await trio.sleep(5)
            assert sup.child("a").incarnation > 1

    def check() -> None:
        ledger.settle()
        trail.settle()

    assert cancel_everywhere(scenario, check) > 15
    assert set(overlaps) == {2}, "the lifespan and its one task"


# -- what an actor does beside its messages -------------------------------------------------------


class Fetch(Request[int]):
    """Answered when background work has come back."""


@dataclass(frozen=True)
class Fetched:
    """The outcome of background work."""

    value: int


class Fetcher(Actor[Fetch | Fetched | Down]):
    """Owes its replies while work goes on in the background; watches a peer."""

    def __init__(self, trail: Trail, peer: ActorRef[Any], downs: list[str]) -> None:
        self._trail = trail
        self._peer = peer
        self._downs = downs
        self._owed: list[ReplyHandle] = []

    async def on_start(self) -> None:
        self.watch(self._peer)

    @on
    async def fetch(self, _message: Fetch) -> int:
        self._owed.append(self.reply_later())
        self.start_soon(self._work, then=lambda outcome: Fetched(outcome.unwrap()))
        return NoReply

    async def _work(self) -> int:
        async with self._trail.step():
            await trio.sleep(1)
            return 5

    @on
    async def fetched(self, message: Fetched) -> None:
        self._owed.pop().reply(message.value)

    @on
    async def down(self, message: Down) -> None:
        self._downs.append(message.ref.path)


def test_background_work_and_replies_that_are_owed() -> None:
    """C11: the work ends with its incarnation, and whoever waits for an owed reply is told."""
    ledger, trail = Ledger(["r/peer", "r/fetcher"]), Trail()
    asks, downs = Trail(), list[str]()
    ends: list[str] = []

    async def ask(ref: ActorRef[Any]) -> None:
        with trio.CancelScope(shield=True), trio.fail_after(HANG / 2):
            async with asks.step():
                try:
                    ends.append(f"reply {await ref.ask(Fetch())}")
                except ActorStopped:
                    ends.append("stopped")

    async def scenario() -> None:
        spec = ChildSpec(Counter, id="peer")
        async with (
            trio.open_nursery() as nursery,
            open_supervisor(spec, intensity=OFTEN, name="r", emit=ledger) as sup,
        ):
            peer = as_actor(sup.child("peer"))
            fetcher = await sup.start_child(ChildSpec(Fetcher, trail, peer, downs, id="fetcher"))
            for _ in range(2):
                nursery.start_soon(ask, fetcher)
            await peer.tell(Boom())
            await trio.sleep(2)
            await fetcher.suspend()
            nursery.start_soon(ask, fetcher)
            await wait_all_tasks_blocked()
            await fetcher.resume()
            await trio.sleep(2)

    def check() -> None:
        ledger.settle()
        trail.settle()
        asks.settle()

    assert cancel_everywhere(scenario, check) > 30
    assert set(ends) == {"reply 5", "stopped"}
    assert set(downs) == {"r/peer"}
