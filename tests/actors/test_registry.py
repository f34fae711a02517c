"""The registry: names of services, one set of them for each tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors import (
    ActorRef,
    ActorStopped,
    Backoff,
    ChildRef,
    ChildSpec,
    ChildStartError,
    DynamicSupervisor,
    ExitReason,
    GaveUp,
    Intensity,
    NameTaken,
    Registry,
    Request,
    ServiceKey,
    ServiceNotFound,
    Supervisor,
    SupervisorClosed,
    on,
    open_supervisor,
    pool,
    subtree,
)
from tests.actors.otp import statement
from tests.actors.support import Add, Boom, Counter, Leave, Notices, Total, cancel_everywhere

if TYPE_CHECKING:
    from trio.testing import MockClock

COUNTERS = ServiceKey[Any]("counters")
LEADER = ServiceKey[Any]("leader", unique=True)


class Enlist(Request[None]):
    """Makes the actor register or unregister itself."""

    def __init__(self, key: ServiceKey[Any], *, leave: bool = False) -> None:
        self.key = key
        self.leave = leave


class Service(Counter):
    """Registers itself when it starts, and when it is told."""

    def __init__(self, *keys: ServiceKey[Any]) -> None:
        super().__init__()
        self.keys = keys

    async def on_start(self) -> None:
        for key in self.keys:
            self.registry.register(key)

    @on
    async def enlist(self, message: Enlist) -> None:
        if message.leave:
            self.registry.unregister(message.key)
        else:
            self.registry.register(message.key)


# -- keys -----------------------------------------------------------------------------------------


def test_a_key_is_its_name() -> None:
    assert ServiceKey[Any]("a") == ServiceKey[Total]("a") == ServiceKey("a", unique=True) != ServiceKey("b")
    assert len({ServiceKey[Add]("a"), ServiceKey[Add]("a", unique=True)}) == 1
    assert "'a'" in repr(ServiceKey[Add]("a"))
    with pytest.raises(AttributeError):
        ServiceKey[Add]("a").name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (3, TypeError), (None, TypeError)])
def test_what_is_no_name_is_refused(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="name"):
        ServiceKey[Add](name)


# -- finding --------------------------------------------------------------------------------------


async def test_an_actor_is_found_by_what_it_registered_itself_under() -> None:
    async with open_supervisor() as sup:
        assert sup.registry.find(COUNTERS) is None
        assert sup.registry.members(COUNTERS) == []
        assert sup.registry.keys() == []
        first = await sup.start_child(Service, COUNTERS)
        second = await sup.start_child(Service, COUNTERS)
        assert sup.registry.lookup(COUNTERS) is sup.registry.find(COUNTERS) is first
        assert sup.registry.members(COUNTERS) == [first, second]
        assert sup.registry.keys() == [COUNTERS]
        await second.ask(Enlist(LEADER))
        assert repr(sup.registry) == "<Registry [counters, leader]>"
        await first.ask(Enlist(COUNTERS, leave=True))
        await first.ask(Enlist(COUNTERS, leave=True))
        assert sup.registry.lookup(COUNTERS) is second


async def test_nobody_there_is_an_error_that_names_the_key() -> None:
    async with open_supervisor() as sup:
        with pytest.raises(ServiceNotFound, match="counters") as caught:
            sup.registry.lookup(COUNTERS)
        assert caught.value.key is COUNTERS
        assert isinstance(caught.value, LookupError)


async def test_a_reference_can_be_registered_by_anybody() -> None:
    async with open_supervisor() as sup:
        counters = await sup.start_child(pool(Counter, size=2))
        sup.registry.register(COUNTERS, counters)
        sup.registry.register(COUNTERS, counters)
        assert sup.registry.members(COUNTERS) == [counters]
        sup.registry.unregister(COUNTERS, counters)
        assert sup.registry.keys() == []


async def test_what_cannot_be_registered_is_refused() -> None:
    async with open_supervisor() as sup, open_supervisor(name="other") as other:
        counter = await sup.start_child(Counter)
        function: Any = await sup.start_child(trio.sleep_forever)
        with pytest.raises(TypeError, match="whom"):
            sup.registry.register(COUNTERS)
        with pytest.raises(TypeError, match="takes messages"):
            sup.registry.register(COUNTERS, function)
        with pytest.raises(ValueError, match="another tree"):
            other.registry.register(COUNTERS, counter)
        await counter.stop()
        with pytest.raises(ActorStopped):
            sup.registry.register(COUNTERS, counter)
        assert sup.registry.keys() == other.registry.keys() == []


def test_there_is_no_registry_inside_init() -> None:
    with pytest.raises(RuntimeError, match="__init__"):
        _ = Counter().registry


# -- one for each tree ----------------------------------------------------------------------------


async def test_a_whole_tree_shares_one_registry() -> None:
    seen: list[Registry] = []

    class Member(Service):
        async def on_start(self) -> None:
            await super().on_start()
            seen.append(self.registry)

    dynamic = DynamicSupervisor(name="dynamic")
    async with open_supervisor(subtree(subtree(ChildSpec(Member, COUNTERS), name="in"), name="out"), dynamic) as sup:
        inner = await dynamic.start_child(Member, COUNTERS)
        members = await sup.start_child(pool(Member, COUNTERS, size=3, route="round_robin"))
        assert len(sup.registry.members(COUNTERS)) == 5
        assert inner in sup.registry.members(COUNTERS)
        assert isinstance(members.value, Supervisor)
        assert dynamic.registry is members.value.registry is sup.registry is members.registry
        assert set(seen) == {sup.registry}
        await sup.stop_child("out")
        await dynamic.stop_child(inner.id)
        assert len(sup.registry.members(COUNTERS)) == 3
    assert sup.registry.keys() == []


async def test_two_trees_side_by_side_never_see_each_other() -> None:
    async with open_supervisor() as left, open_supervisor() as right:
        await left.start_child(Service, LEADER)
        other = await right.start_child(Service, LEADER)
        assert left.registry != right.registry
        assert right.registry.members(LEADER) == [other]
        assert left.registry != "something else"


# -- waiting --------------------------------------------------------------------------------------


async def test_waiting_ends_with_the_registration(autojump_clock: MockClock) -> None:
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        found: list[ActorRef[Any]] = []

        async def wait() -> None:
            found.append(await sup.registry.wait_for(COUNTERS))

        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.sleep(5)
        with trio.move_on_after(1) as scope:
            await sup.registry.wait_for(COUNTERS)
        assert scope.cancelled_caught
        counter = await sup.start_child(Service, COUNTERS)
        await wait_all_tasks_blocked()
        assert found == [counter, counter]
        await wait()
        assert trio.current_time() == 6


async def test_a_wait_that_comes_too_late_goes_on_waiting(autojump_clock: MockClock) -> None:
    """Somebody was there, and gone before the one who waited ran again."""
    async with open_supervisor() as sup:
        counter = await sup.start_child(Counter)
        with trio.move_on_after(1) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sup.registry.wait_for, COUNTERS)
                await wait_all_tasks_blocked()
                sup.registry.register(COUNTERS, counter)
                sup.registry.unregister(COUNTERS, counter)
        assert scope.cancelled_caught


async def test_the_end_of_the_tree_ends_a_wait() -> None:
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(SupervisorClosed):
                await sup.registry.wait_for(COUNTERS)

        async with open_supervisor() as sup:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
    await wait()


async def test_finding_and_waiting_are_checkpoints() -> None:
    async with open_supervisor() as sup:
        await sup.start_child(Service, COUNTERS)
        with trio.testing.assert_checkpoints():
            await sup.registry.wait_for(COUNTERS)


def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        async with open_supervisor() as sup, trio.open_nursery() as nursery:
            nursery.start_soon(sup.registry.wait_for, COUNTERS)
            await wait_all_tasks_blocked()
            counter = await sup.start_child(Service, COUNTERS, LEADER)
            await counter.ask(Enlist(LEADER))
            await counter.stop()
            assert sup.registry.keys() == []

    assert cancel_everywhere(scenario) > 10


# -- how long it lasts ----------------------------------------------------------------------------


async def test_a_restart_registers_anew() -> None:
    async with open_supervisor() as sup:
        service = await sup.start_child(Service, COUNTERS)
        await service.ask(Enlist(LEADER))
        assert sup.registry.lookup(LEADER) is service
        await service.tell(Boom())
        assert await service.ask(Total()) == 0
        assert sup.registry.keys() == [COUNTERS], "what the first incarnation took later is gone"


async def test_a_registered_name_outlives_the_restart_of_its_actor(autojump_clock: MockClock) -> None:
    """Callers wait, as with a reference."""
    async with open_supervisor(backoff=Backoff(initial=5, jitter=0)) as sup:
        service = await sup.start_child(Service, COUNTERS, LEADER)
        heir = await sup.start_child(ChildSpec(Service, id="heir"))
        await service.tell(Boom())
        await wait_all_tasks_blocked()
        assert service.status == "restarting"
        assert sup.registry.lookup(COUNTERS) == sup.registry.lookup(LEADER) == service
        with pytest.raises(NameTaken):
            sup.registry.register(LEADER, heir)
        assert await sup.registry.lookup(COUNTERS).ask(Total()) == 0
        assert service.incarnation == 2
        assert sup.registry.keys() == [COUNTERS, LEADER]


async def test_a_name_stays_while_the_restart_fails_and_is_free_when_the_child_ends_for_good(
    autojump_clock: MockClock,
) -> None:
    starts: list[bool] = [True, False, False, True]

    class Flaky(Service):
        async def on_start(self) -> None:
            await super().on_start()
            if not starts.pop(0):
                raise OSError("not yet")

    async with open_supervisor(backoff=Backoff(initial=1, factor=1, jitter=0)) as sup:
        service = await sup.start_child(Flaky, LEADER)
        await service.tell(Boom())
        for _ in range(4):
            assert sup.registry.lookup(LEADER) == service
            await trio.sleep(1.01)
        assert (service.status, service.incarnation) == ("running", 4)
        await service.stop()
        with pytest.raises(ServiceNotFound):
            sup.registry.lookup(LEADER)


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_names_of_a_group_outlive_its_restart(strategy: Any) -> None:
    seen: list[bool] = []

    class Watching(Service):
        async def on_stop(self, reason: ExitReason) -> None:
            seen.append(self.registry.find(COUNTERS) is not None)

    async with open_supervisor(strategy=strategy) as sup:
        first = await sup.start_child(Counter)
        service = await sup.start_child(ChildSpec(Watching, COUNTERS))
        ends: list[bool] = []
        service.call_at_end(lambda _reason: ends.append(sup.registry.find(COUNTERS) is not None))
        await first.tell(Boom())
        await wait_all_tasks_blocked()
        assert await sup.registry.lookup(COUNTERS).ask(Total()) == 0
        assert (seen, ends, service.incarnation) == ([True], [True], 2)


async def test_who_gives_up_frees_its_names_before_anybody_hears() -> None:
    heard: list[list[Any]] = []

    async def work() -> None:
        async with open_supervisor(intensity=Intensity(0)) as sup:
            service = await sup.start_child(Service, COUNTERS)
            service.call_at_end(lambda _reason: heard.append(sup.registry.keys()))
            await service.tell(Boom())
            await trio.sleep_forever()

    with pytest.raises(GaveUp):
        await work()
    assert heard == [[]]


async def test_a_registration_from_outside_lasts_over_restarts() -> None:
    async with open_supervisor() as sup:
        counter = await sup.start_child(ChildSpec(Counter, restart="transient"))
        sup.registry.register(COUNTERS, counter)
        await counter.tell(Boom())
        assert await counter.ask(Total()) == 0
        assert sup.registry.lookup(COUNTERS) is counter
        await counter.tell(Leave())
        await counter.wait_stopped()
        assert sup.registry.keys() == []


async def test_of_two_registrations_the_longer_counts() -> None:
    async with open_supervisor() as sup:
        service = await sup.start_child(Service)
        sup.registry.register(COUNTERS, service)
        await service.ask(Enlist(COUNTERS))
        await service.tell(Boom())
        assert await service.ask(Total()) == 0
        assert sup.registry.members(COUNTERS) == [service]


@pytest.mark.parametrize("way", ["crash", "leave", "stop", "kill"])
async def test_a15_a_name_is_free_before_anybody_hears_of_the_end(way: str) -> None:
    """A15: whoever is told takes the name at once, whatever the way in which he is told."""
    taken: list[str] = []

    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        heirs = [await sup.start_child(ChildSpec(Counter, id=name)) for name in ("notice", "end", "wait")]

        def take(heir: ActorRef[Any]) -> None:
            sup.registry.register(LEADER, heir)
            taken.append(str(heir.id))
            sup.registry.unregister(LEADER, heir)

        class Hearer(Notices):
            def __call__(self, notice: object) -> None:
                if type(notice).__name__ in {"ChildExited", "ChildStopped"}:
                    take(heirs[0])

        service = await sup.start_child(ChildSpec(Service, LEADER, restart="temporary"))
        sup.emit = Hearer()
        service.call_at_end(lambda _reason: take(heirs[1]))

        async def wait() -> None:
            await service.wait_stopped()
            take(heirs[2])

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        with pytest.raises(NameTaken):
            take(heirs[0])
        if way in {"crash", "leave"}:
            await service.tell(Boom() if way == "crash" else Leave())
        elif way == "stop":
            await service.stop()
        else:
            await service.stop_now()
        await wait_all_tasks_blocked()
        assert sorted(taken) == ["end", "notice", "wait"]
        sup.emit = Notices()


async def test_a_failed_start_leaves_no_name() -> None:
    class Broken(Service):
        async def on_start(self) -> None:
            await super().on_start()
            raise OSError("no")

    async with open_supervisor() as sup:
        with pytest.raises(ChildStartError):
            await sup.start_child(Broken, LEADER)
        assert sup.registry.keys() == []


async def test_an_actor_that_has_ended_cannot_register_itself() -> None:
    kept: list[Service] = []

    class Kept(Service):
        async def on_stop(self, reason: ExitReason) -> None:
            kept.append(self)

    async with open_supervisor() as sup:
        service = await sup.start_child(Kept)
        await service.stop()
        with pytest.raises(ActorStopped):
            kept[0].registry.register(COUNTERS)


# -- unique names ---------------------------------------------------------------------------------


@statement(31, "already_started_outside_supervisor")
async def test_31_a_name_that_is_taken_is_told_unchanged_with_its_holder() -> None:
    """As OTP's already_started: start_child and restart_child pass it through."""
    async with open_supervisor() as sup:
        first = await sup.start_child(Service, LEADER)
        with pytest.raises(NameTaken, match="leader") as caught:
            await sup.start_child(Service, LEADER)
        assert (caught.value.key, caught.value.ref) == (LEADER, first)
        assert sup.which_children() == [first]
        second = await sup.start_child(ChildSpec(Service, id="second"))
        with pytest.raises(NameTaken):
            sup.registry.register(LEADER, second)
        sup.registry.register(LEADER, first)
        await first.stop()
        await sup.start_child(Service, LEADER)
        with pytest.raises(NameTaken):
            await sup.restart_child(first.id)


@statement(15, "faulty_application_shutdown")
async def test_at_the_start_of_a_supervisor_it_is_a_failed_start() -> None:
    """The child that failed is named."""
    with pytest.raises(ChildStartError) as caught:
        async with open_supervisor(ChildSpec(Service, LEADER), ChildSpec(Service, LEADER, id="second")):
            pytest.fail("it started")
    assert caught.value.child_id == "second"
    assert isinstance(caught.value.__cause__, NameTaken)


async def test_uniqueness_holds_from_either_side() -> None:
    loose, strict = ServiceKey[Any]("one"), ServiceKey[Any]("one", unique=True)
    async with open_supervisor() as sup:
        first, second = await sup.start_child(Counter), await sup.start_child(Counter)
        sup.registry.register(loose, first)
        with pytest.raises(NameTaken):
            sup.registry.register(strict, second)
        sup.registry.register(strict, first)
        with pytest.raises(NameTaken):
            sup.registry.register(loose, second)


async def test_a_successor_takes_the_name_over() -> None:
    """A standby waits for the end of the leader, by the reference, and takes its name."""
    async with open_supervisor() as sup, trio.open_nursery() as nursery:
        leader: ChildRef = await sup.start_child(ChildSpec(Service, LEADER, restart="temporary"))

        async def stand_by() -> None:
            await leader.wait_stopped()
            await sup.start_child(ChildSpec(Service, LEADER, id="standby"))

        nursery.start_soon(stand_by)
        await wait_all_tasks_blocked()
        await leader.stop()
        assert (await sup.registry.wait_for(LEADER)).id == "standby"
