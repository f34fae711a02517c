"""The promises of the bus to publishers and watchers in one trio run."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omniactors.errors import TooManySubscribers
from omniactors.events.bus import RING_EVENTS, EventBus
from omniactors.events.context import run_context
from omniactors.events.event import GAP, Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterable


def publish(bus: EventBus, count: int, *, run_id: str = "A", event_type: str = "task.started") -> None:
    for number in range(count):
        bus.publish(Event(run_id=run_id, event_type=event_type, data={"n": number}))


async def offsets(events: AsyncIterable[Event]) -> list[int]:
    """Offsets up to the end of the stream, which must come."""
    with trio.fail_after(5):
        return [event.offset async for event in events]


async def test_publish_stamps_offset_id_time_and_source() -> None:
    bus = EventBus(source="here")
    with run_context("A"):
        bus.publish(Event(event_type="task.started", data={"n": 1}))
    (event,) = bus.history("A")
    assert (event.run_id, event.offset, event.source, event.data) == ("A", 1, "here", {"n": 1})
    assert event.event_id == f"{bus.epoch}-1"
    assert event.timestamp > 1e9


async def test_an_event_that_names_its_run_keeps_it() -> None:
    bus = EventBus()
    with run_context("A"):
        bus.publish(Event(run_id="B", event_type="x"))
    assert [event.run_id for event in bus.history("B")] == ["B"]


async def test_one_event_published_twice_is_two_events() -> None:
    bus = EventBus()
    event = Event(run_id="A", event_type="x")
    bus.publish(event)
    bus.publish(event)
    assert [found.offset for found in bus.history("A")] == [1, 2]
    assert event.offset == 0


async def test_a_run_gives_history_then_live_and_ends_with_its_stream() -> None:
    bus = EventBus()
    publish(bus, 2)
    events = bus.subscribe("A")
    publish(bus, 2)
    publish(bus, 1, run_id="B")
    bus.close_stream("A")
    assert await offsets(events) == [1, 2, 3, 4]


async def test_a_run_that_ended_replays_for_late_comers() -> None:
    bus = EventBus()
    publish(bus, 3)
    bus.close_stream("A")
    assert await offsets(bus.subscribe("A")) == [1, 2, 3]
    assert await offsets(bus.subscribe("A")) == [1, 2, 3]


async def test_publishing_to_a_closed_run_opens_it_again() -> None:
    bus = EventBus()
    publish(bus, 1)
    bus.close_stream("A")
    publish(bus, 1)
    events = bus.subscribe("A")
    assert [(await events.receive()).offset for _ in range(2)] == [1, 2]
    assert events.end_reason is None


async def test_an_ended_run_whose_history_is_gone_ends_at_once() -> None:
    bus = EventBus(max_runs_retained=1)
    publish(bus, 1, run_id="A")
    bus.close_stream("A")
    publish(bus, 1, run_id="B")
    assert bus.history("A") == ()
    assert await offsets(bus.subscribe("A")) == []


async def test_the_end_arrives_when_the_queue_is_full_and_only_once() -> None:
    bus = EventBus()
    events = bus.subscribe("A", capacity=2)
    publish(bus, 5)
    bus.close_stream("A")
    seen = [(event.event_type, event.offset) async for event in events]
    assert seen == [("task.started", 1), ("task.started", 2), (GAP, 5)]
    assert await offsets(events) == []
    with pytest.raises(trio.EndOfChannel):
        await events.receive()


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "close"])
async def test_closing_the_bus_ends_everybody(overflow: str) -> None:
    bus = EventBus()
    subscriptions = [
        bus.subscribe("A", capacity=1, overflow=overflow),  # type: ignore[arg-type]
        bus.subscribe(types=["task.*"], capacity=1, overflow=overflow),  # type: ignore[arg-type]
        bus.subscribe_global(capacity=1),
        bus.subscribe(since=f"{bus.epoch}-0"),
    ]
    publish(bus, 4)
    bus.close()
    publish(bus, 1)
    for events in subscriptions:
        with trio.fail_after(5):
            assert [event.offset async for event in events][-1] <= 4
    assert await offsets(bus.subscribe_global()) == []
    assert await offsets(bus.subscribe("A")) == [1, 2, 3, 4]
    assert bus.head == 4


async def test_waiting_readers_are_woken_by_event_end_close_and_leave() -> None:
    bus = EventBus()
    ends: dict[str, str] = {}

    async def read(name: str, run_id: str | None) -> None:
        events = subscriptions[name] = bus.subscribe(run_id) if run_id else bus.subscribe_global()
        try:
            await events.receive()
            await events.receive()
        except trio.EndOfChannel:
            ends[name] = str(events.end_reason)
        except trio.ClosedResourceError:
            ends[name] = "closed"

    subscriptions: dict[str, object] = {}
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for name, run_id in (("run", "A"), ("left", "A"), ("all", None)):
                nursery.start_soon(read, name, run_id)
            await wait_all_tasks_blocked()
            publish(bus, 1)
            await wait_all_tasks_blocked()
            left = subscriptions["left"]
            assert hasattr(left, "aclose")
            await left.aclose()
            bus.close_stream("A")
            await wait_all_tasks_blocked()
            bus.close()
    assert ends == {"run": "run-closed", "left": "closed", "all": "bus-closed"}


async def test_everybody_sees_the_same_order() -> None:
    bus = EventBus()
    subscriptions = [
        bus.subscribe_global(),
        bus.subscribe(types=">"),
        bus.subscribe("A"),
        bus.subscribe(topics=["*.*"]),
    ]
    publish(bus, 50)
    bus.close()
    seen = [await offsets(events) for events in subscriptions]
    assert seen == [list(range(1, 51))] * 4


async def test_types_and_where_choose() -> None:
    bus = EventBus()
    tasks = bus.subscribe(types=["task.*"])
    second = bus.subscribe(types=["task.*", "agent.>"], where={"data.n": 1})
    publish(bus, 2, event_type="task.started")
    publish(bus, 2, event_type="agent.started")
    publish(bus, 2, event_type="other")
    bus.close()
    assert await offsets(tasks) == [1, 2]
    assert await offsets(second) == [2, 4]


async def test_a_run_can_be_narrowed_to_types() -> None:
    bus = EventBus()
    publish(bus, 1, event_type="task.started")
    publish(bus, 1, event_type="agent.started")
    events = bus.subscribe("A", types=["task.*"])
    publish(bus, 1, event_type="agent.started")
    publish(bus, 1, event_type="task.started")
    bus.close_stream("A")
    assert await offsets(events) == [1, 4]


async def test_a_drop_counts_for_one_subscriber_and_in_total_and_is_told_in_place() -> None:
    bus = EventBus()
    slow, fast = bus.subscribe_global(capacity=2), bus.subscribe_global()
    publish(bus, 5)
    assert (slow.dropped, slow.queued, fast.dropped, fast.queued) == (3, 2, 0, 5)
    assert bus.stats()["dropped_events_total"] == 3
    batch = await slow.receive_batch()
    assert [event.offset for event in batch] == [1, 2, 5]
    gap = batch[-1]
    assert gap.event_type == GAP
    assert gap.data == {"lost": 3, "first": 3, "last": 5, "why": "overflow"}
    publish(bus, 1)
    assert (await slow.receive()).offset == 6
    assert slow.matched == slow.delivered + slow.dropped + slow.queued == 6


async def test_what_a_leaver_lost_stays_in_the_total() -> None:
    bus = EventBus()
    async with bus.subscribe_global(capacity=1) as events:
        publish(bus, 3)
        assert events.dropped == 2
    assert (events.matched, events.queued) == (2, 0)  # who leaves drops nothing by that
    publish(bus, 1)
    assert bus.stats()["dropped_events_total"] == 2
    assert bus.stats()["subscribers"] == []


async def test_global_subscribers_are_capped_and_places_are_given_back() -> None:
    bus = EventBus(max_global_subscribers=2)
    first = bus.subscribe_global()
    second = bus.subscribe_global()
    with pytest.raises(TooManySubscribers) as refused:
        bus.subscribe_global()
    assert refused.value.limit == 2
    await first.aclose()
    third = bus.subscribe_global()
    del second
    gc.collect()
    assert bus.stats()["global_subscribers"] == 1
    bus.subscribe_global()
    assert third.end_reason is None


async def test_subscriptions_that_come_and_go_leave_nothing_behind() -> None:
    bus = EventBus()
    for _ in range(100):
        await bus.subscribe("A").aclose()
        bus.subscribe(types=["x"]).close()
    gc.collect()
    assert repr(bus.subscribe("A")) == "<Subscription live: 0 delivered, 0 dropped, 0 queued>"
    assert repr(bus) == "<EventBus 0 published, 1 subscribers>"


async def test_dropping_a_loop_frees_its_subscription() -> None:
    bus = EventBus()
    publish(bus, 2)
    async for event in bus.subscribe("A"):
        assert event.offset == 1
        assert len(bus.stats()["subscribers"]) == 1
        break
    gc.collect()
    assert bus.stats()["subscribers"] == []


async def test_a_reader_that_takes_one_at_a_time_keeps_up_with_four_publishes_a_turn() -> None:
    bus = EventBus()
    count = 20_000

    async def publisher() -> None:
        for _ in range(count // 4):
            publish(bus, 4)
            await trio.lowlevel.checkpoint()
        bus.close()

    events = bus.subscribe_global()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher)
        assert await offsets(events) == list(range(1, count + 1))
    assert events.dropped == 0


async def test_a_reader_lets_others_run_although_it_never_waits() -> None:
    bus = EventBus()
    turns = []

    async def other() -> None:
        for _ in range(5):
            turns.append(events.delivered)
            await trio.lowlevel.checkpoint()

    events = bus.subscribe_global()
    publish(bus, 1000)
    bus.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await offsets(events)
    assert len(turns) == 5
    assert turns[-1] < 1000


async def test_a_cancelled_reader_loses_nothing() -> None:
    bus = EventBus()
    events = bus.subscribe_global()
    for _ in range(3):
        with trio.CancelScope() as scope:
            scope.cancel()
            await events.receive_batch()
        assert scope.cancelled_caught
        publish(bus, 1)
    assert [event.offset for event in await events.receive_batch()] == [1, 2, 3]


async def test_resume_from_a_position_without_gap_or_repeat() -> None:
    bus = EventBus()
    publish(bus, 700)
    first = bus.subscribe(types=["task.*"], since=f"{bus.epoch}-0")
    seen = [(await first.receive()).offset for _ in range(300)]
    await first.aclose()
    second = bus.subscribe(types=["task.*"], since=f"{bus.epoch}-{seen[-1]}", capacity=5)
    assert (second.resumed, second.start, second.replaying) == (True, 300, True)
    publish(bus, 100)
    seen += [(await second.receive()).offset for _ in range(500)]
    assert not second.replaying
    publish(bus, 3)
    bus.close()
    seen += await offsets(second)
    assert seen == list(range(1, 804))
    assert second.dropped == 0


async def test_resume_with_filters_counts_only_what_matches() -> None:
    bus = EventBus()
    for number in range(600):
        publish(bus, 1, event_type="task.started" if number % 3 else "agent.started")
    events = bus.subscribe(types=["agent.*"], since=f"{bus.epoch}-10")
    bus.close()
    expected = [offset for offset in range(11, 601) if (offset - 1) % 3 == 0]
    assert await offsets(events) == expected
    assert events.matched == events.delivered == len(expected)


async def test_what_a_resume_can_no_longer_get_is_told_first() -> None:
    bus = EventBus()
    publish(bus, RING_EVENTS + 100)
    events = bus.subscribe(since=f"{bus.epoch}-40")
    gap, following = await events.receive(), await events.receive()
    assert not events.resumed
    assert gap.data == {"lost": 60, "first": 41, "last": 100, "why": "evicted"}
    assert (gap.offset, following.offset) == (100, 101)


async def test_a_replay_that_is_overtaken_tells_it() -> None:
    bus = EventBus()
    publish(bus, 300)
    events = bus.subscribe(since=f"{bus.epoch}-0", capacity=10)
    first = await events.receive_batch(256)
    publish(bus, RING_EVENTS)
    gap = await events.receive()
    rest = await events.receive_batch(10_000)
    assert events.resumed
    assert [event.offset for event in first] == list(range(1, 257))
    assert gap.data == {"lost": 44, "first": 257, "last": 300, "why": "evicted"}
    assert rest[0].offset == 301


async def test_a_position_of_another_bus_gives_what_is_there_and_says_so() -> None:
    bus = EventBus()
    publish(bus, 2)
    events = bus.subscribe(since="other-77")
    bus.close()
    gap, *rest = [event async for event in events]
    assert not events.resumed
    assert gap.data["why"] == "epoch"
    assert gap.data["lost"] is None
    assert [event.offset for event in rest] == [1, 2]


async def test_a_run_that_ends_during_a_replay_ends_it_there() -> None:
    bus = EventBus()
    publish(bus, 400)
    events = bus.subscribe("A", since=f"{bus.epoch}-1")
    await events.receive()
    bus.close_stream("A")
    publish(bus, 5)
    assert await offsets(events) == list(range(3, 401))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"types": ["a"], "topics": ["b"]}, "two names of one thing"),
        ({"types": []}, "types is empty"),
        ({"types": ["task*"]}, "whole tokens"),
        ({"since": "nonsense"}, "position looks like"),
        ({"where": {"agent": 1}}, "no field of an event"),
        ({"capacity": 0}, "capacity must be"),
        ({"overflow": "wait"}, "overflow must be"),
    ],
)
async def test_a_subscription_that_makes_no_sense_is_refused(arguments: dict[str, object], words: str) -> None:
    bus = EventBus()
    with pytest.raises(ValueError, match=words):
        bus.subscribe(**arguments)  # type: ignore[arg-type]
    assert bus.stats()["subscribers"] == []


def test_a_bus_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        EventBus(0)


async def test_stats_tell_each_subscriber() -> None:
    bus = EventBus()
    reader = bus.subscribe("A", capacity=7, overflow="drop_oldest")
    publish(bus, 3)
    publish(bus, 1, run_id="B")
    bus.close_stream("B")
    await reader.receive()
    stats = bus.stats()
    assert stats["subscribers"] == [
        {
            "run_id": "A",
            "types": None,
            "delivered": 1,
            "dropped": 0,
            "queued": 2,
            "capacity": 7,
            "overflow": "drop_oldest",
            "lag": 3,
        }
    ]
    assert (stats["active_runs"], stats["history_runs"], stats["published_total"]) == (1, 2, 4)
    assert (stats["queue_depths"], stats["head"], stats["first"], stats["epoch"]) == ({"A": [2]}, 4, 1, bus.epoch)
    assert repr(bus) == "<EventBus 4 published, 1 subscribers>"
    assert repr(reader) == "<Subscription live: 1 delivered, 0 dropped, 2 queued>"


async def test_position_moves_with_the_bus_while_nothing_waits() -> None:
    bus = EventBus()
    events = bus.subscribe(types=["agent.*"])
    publish(bus, 5)
    assert (events.position, events.lag) == (5, 0)
    publish(bus, 1, event_type="agent.started")
    publish(bus, 1)
    assert (events.position, events.lag) == (0, 7)
    await events.receive()
    assert (events.position, events.lag) == (7, 0)


async def test_active_runs_are_those_that_somebody_subscribes_to() -> None:
    bus = EventBus()
    bus.publish(Event(run_id="A", event_type="x"))
    assert (bus.stats()["active_runs"], bus.stats()["queue_depths"]) == (0, {})
    first, second, other = bus.subscribe("A"), bus.subscribe("A"), bus.subscribe("B")
    everything = bus.subscribe_global()
    await second.receive()
    stats = bus.stats()
    assert (stats["active_runs"], stats["queue_depths"]) == (2, {"A": [1, 0], "B": [0]})
    await first.aclose()
    await other.aclose()
    assert bus.stats()["active_runs"] == 1
    bus.close_stream("A")
    assert [event async for event in second] == []
    assert (bus.stats()["active_runs"], bus.stats()["queue_depths"]) == (0, {})
    await everything.aclose()
