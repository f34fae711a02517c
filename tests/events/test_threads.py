"""Who may call what from where: other threads, no trio at all, one run after another."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors.events.bus import EventBus
from omniactors.events.context import run_context
from omniactors.events.entrance import Entrance
from omniactors.events.event import GAP, Event

if TYPE_CHECKING:
    from collections.abc import Callable


def in_thread(action: Callable[[], object]) -> None:
    """Run `action` in a thread of its own, to its end; what it raises is raised here."""
    errors = []

    def guarded() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 -- handed to the caller
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    for error in errors:
        raise error


Item = TypeVar("Item")


def entrance_of(capacity: int, admit: Callable[[Item], None]) -> Entrance[Item]:
    return Entrance(
        capacity,
        admit,
        lambda lost: None,
        pack=lambda item: item,
        weigh=lambda item: 1,
        admitted=lambda: 0,
        repair=lambda: None,
    )


def publish(bus: EventBus, count: int, *, run_id: str = "A") -> None:
    for number in range(count):
        bus.publish(Event(run_id=run_id, event_type="x", data={"n": number}))


def test_without_trio_events_are_kept_at_once() -> None:
    bus = EventBus()
    publish(bus, 2)
    in_thread(lambda: publish(bus, 2))
    bus.close_stream("A")
    assert [event.offset for event in bus.history("A")] == [1, 2, 3, 4]
    assert bus.stats()["published_total"] == 4


def test_a_subscription_made_before_trio_runs_counts_from_then() -> None:
    bus = EventBus()
    events = bus.subscribe_global()
    in_thread(lambda: publish(bus, 3))
    bus.close()

    async def main() -> list[int]:
        return [event.offset async for event in events]

    assert trio.run(main) == [1, 2, 3]


def test_one_bus_serves_one_run_after_another() -> None:
    bus = EventBus()
    events = bus.subscribe_global()

    async def main(first: int) -> None:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_from_thread)
                assert (await events.receive()).offset == first

    async def publish_from_thread() -> None:
        await wait_all_tasks_blocked()
        await trio.to_thread.run_sync(lambda: publish(bus, 1))

    trio.run(main, 1)
    publish(bus, 1)
    in_thread(lambda: publish(bus, 1))
    assert bus.head == 3
    trio.run(main, 2)
    in_thread(lambda: trio.run(main, 3))
    assert bus.head == 5
    assert events.queued == 2


async def test_a_thread_wakes_a_waiting_reader_and_keeps_its_run_and_order() -> None:
    bus = EventBus()
    events = bus.subscribe("B")

    def work() -> None:
        for number in range(100):
            bus.publish(Event(event_type="x", data={"n": number}))
        bus.close_stream("B")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.run)
            with run_context("B"):
                await trio.to_thread.run_sync(work)
            assert [event.data["n"] async for event in events] == list(range(100))
            nursery.cancel_scope.cancel()


async def test_run_is_started_with_the_bus_claimed() -> None:
    bus = EventBus()
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await trio.to_thread.run_sync(lambda: publish(bus, 3))
        await wait_all_tasks_blocked()
        assert bus.head == 3
        nursery.cancel_scope.cancel()


async def test_events_that_a_thread_publishes_too_fast_are_counted_and_told_to_everybody() -> None:
    bus = EventBus(max_queue_size=10)
    types, everything = bus.subscribe(types=["never"], capacity=100), bus.subscribe_global(capacity=100)
    in_thread(lambda: publish(bus, 25))  # this task does not yield: nothing gets in before the line is full
    assert bus.head == 0
    publish(bus, 1)
    assert bus.head == 12
    batch = await everything.receive_batch()
    assert [event.event_type for event in batch] == ["x"] * 10 + [GAP, "x"]
    assert batch[10].data == {"lost": 15, "first": None, "last": None, "why": "threads"}
    assert (await types.receive()).data["lost"] == 15
    stats = bus.stats()
    assert (stats["lost_from_threads"], stats["dropped_events_total"]) == (15, 15)


async def test_the_end_of_a_run_from_a_thread_is_never_lost() -> None:
    bus = EventBus(max_queue_size=3)
    events = bus.subscribe("A")
    bus.claim()

    def work() -> None:
        publish(bus, 9)
        bus.close_stream("A")

    in_thread(work)
    with trio.fail_after(5):
        assert [event.offset async for event in events] == [1, 2, 3]


async def publish_in_thread(bus: EventBus, count: int, run_id: str) -> None:
    await trio.to_thread.run_sync(lambda: publish(bus, count, run_id=run_id))


async def test_many_threads_and_the_run_itself_lose_nothing_that_is_not_counted() -> None:
    bus = EventBus(max_queue_size=50)
    events = bus.subscribe_global(capacity=100_000)
    each, threads = 500, 4
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bus.run)
        async with trio.open_nursery() as workers:
            for number in range(threads):
                workers.start_soon(publish_in_thread, bus, each, str(number))
            for _ in range(each):
                publish(bus, 1, run_id="home")
                await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    bus.close()
    seen = [event async for event in events]
    assert [event.offset for event in seen] == list(range(1, bus.head + 1))
    lost = sum(event.data["lost"] for event in seen if event.event_type == GAP)
    real = [event for event in seen if event.event_type != GAP]
    assert len(real) + lost == each * (threads + 1)
    for name in [*map(str, range(threads)), "home"]:
        numbers = [event.data["n"] for event in real if event.run_id == name]
        if name == "home":
            assert len(numbers) == each
        else:
            assert numbers == sorted(numbers)


async def test_subscribing_and_reading_belong_to_one_run() -> None:
    bus = EventBus()
    events = bus.subscribe_global()

    async def read_here() -> None:
        await events.receive()

    with pytest.raises(RuntimeError, match="another thread"):
        in_thread(bus.subscribe_global)
    with pytest.raises(RuntimeError, match="another thread"):
        await trio.to_thread.run_sync(trio.run, read_here)


async def test_stats_and_history_may_be_read_from_any_thread() -> None:
    bus = EventBus()
    events = bus.subscribe_global()
    publish(bus, 2)
    in_thread(lambda: (bus.stats(), bus.history("A")))
    assert events.queued == 2


def test_a_publish_in_the_middle_of_a_publish_neither_deadlocks_nor_overtakes() -> None:
    admitted: list[str] = []

    def admit(item: str) -> None:
        admitted.append(item)
        if item == "outer":  # as a signal handler would
            entrance.enter("inner")
            assert admitted == ["outer"]

    entrance: Entrance[str] = entrance_of(5, admit)

    async def main() -> None:
        entrance.claim()
        entrance.enter("outer")
        entrance.enter("after")
        await trio.lowlevel.checkpoint()

    trio.run(main)
    assert admitted == ["outer", "inner", "after"]


def test_a_thread_that_never_stops_does_not_keep_a_run_from_its_tasks() -> None:
    turn = 0
    admitted: list[int] = []

    def admit(item: int) -> None:
        admitted.append(turn)
        if item < 10:
            in_thread(lambda: entrance.enter(item + 1))

    entrance = entrance_of(1, admit)

    async def main() -> None:
        nonlocal turn
        entrance.claim()
        in_thread(lambda: entrance.enter(0))
        with trio.fail_after(5):
            while len(admitted) < 11:
                turn += 1
                await trio.lowlevel.checkpoint()

    trio.run(main)
    # Two are admitted at a time, and trio's order may put two such turns into one of this task's.
    assert len(set(admitted)) >= 3


def test_threads_without_a_run_are_admitted_one_at_a_time() -> None:
    inside = 0
    admitted: list[int] = []

    def admit(item: int) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        admitted.append(item)
        inside -= 1

    entrance = entrance_of(100_000, admit)

    def enter_all() -> None:
        for number in range(2000):
            entrance.enter(number)

    threads = [threading.Thread(target=enter_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(admitted) == sorted(list(range(2000)) * 4)
    assert entrance.lost_total == 0


async def test_what_waits_from_threads_is_bounded_in_bytes() -> None:
    bus = EventBus(max_queue_size=1000)
    events = bus.subscribe_global(capacity=1000)
    bus.claim()

    def flood() -> None:
        for _ in range(100):
            bus.publish(Event(event_type="x", data={"text": "x" * 1_000_000}))

    in_thread(flood)
    await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    lost = bus.stats()["lost_from_threads"]
    assert 60 < lost < 75
    assert bus.head == 100 - lost + 1
    assert events.dropped + events.queued == bus.head


async def test_subscribing_in_a_signal_handler_in_the_middle_of_a_publish_is_refused_with_a_sentence() -> None:
    bus = EventBus()
    events = bus.subscribe_global()
    queue = events._subscriber.queue  # noqa: SLF001 -- it calls something inside, where a handler interrupts

    def handler() -> None:
        queue.wake = None
        bus.subscribe_global()

    queue.wake = handler
    with pytest.raises(RuntimeError, match="a signal handler"):
        bus.publish(Event(event_type="x"))
    assert len(bus.stats()["subscribers"]) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_child_has_a_bus_of_its_own() -> None:
    """Even one that is forked in the middle of a publish, under a run that waits."""
    bus = EventBus()
    events = bus.subscribe_global()
    queue = events._subscriber.queue  # noqa: SLF001 -- it calls something inside, where a thread may fork
    reading, writing = os.pipe()

    def in_child() -> None:
        before = bus.head
        in_thread(lambda: publish(bus, 1))
        publish(bus, 1)
        os.write(writing, f"{bus.epoch} {bus.source} {bus.head - before} {bus.stats()['head'] - before}".encode())

    def fork() -> None:
        queue.wake = None
        if os.fork() == 0:
            try:
                in_child()
            finally:
                os._exit(0)

    queue.wake = fork
    publish(bus, 1)
    os.close(writing)
    epoch, source, *counts = (await trio.to_thread.run_sync(os.read, reading, 1000)).decode().split()
    os.close(reading)
    os.wait()  # noqa: ASYNC222 -- it is over, or about to be
    assert epoch != bus.epoch
    assert source != bus.source
    assert counts == ["2", "2"]
    assert (events.queued, bus.head) == (1, 1)
