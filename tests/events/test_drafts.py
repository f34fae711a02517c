"""Drafts: whoever reads sees the same as if an event had been published, whenever it is written out."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from omniactors.events import bus as bus_module
from omniactors.events.bus import QUIET_EVENTS, QUIET_WEIGHT, EventBus
from omniactors.events.event import Draft, Event, ReadOnlyDict
from omniactors.events.history import Ring

if TYPE_CHECKING:
    from omniactors.events.subscription import Subscription

RUNS = st.sampled_from("ABC")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("draft"), RUNS, st.booleans()),
        st.tuples(st.just("event"), RUNS),
        st.tuples(st.just("close"), RUNS),
        st.tuples(st.just("history"), RUNS),
        st.tuples(st.just("stats")),
        st.tuples(st.just("subscribe"), st.one_of(st.none(), RUNS)),
        st.tuples(st.just("resume"), st.integers(0, 20)),
        st.tuples(st.just("leave")),
    ),
    max_size=30,
)


def draft(run_id: str, number: int, *, ends_run: bool = False, weight: int = 0) -> Draft:
    return Draft(run_id, "task.done", ("n", "text"), (number, "x"), weight, float(number), ends_run)


def shown(events: Any) -> list[tuple[Any, ...]]:
    return [(event.run_id, event.event_type, event.data, event.offset, event.timestamp) for event in events]


class Stage:
    """A bus on which steps are done, with drafts or with events in their place, and what can be seen of it."""

    def __init__(self, *, with_drafts: bool) -> None:
        self.bus = EventBus(history_per_run=5, max_runs_retained=2)
        self.seen: list[object] = []
        self._with_drafts = with_drafts
        self._readers: list[tuple[Subscription, list[object]]] = []
        self._number = 0

    async def play(self, steps: list[tuple[Any, ...]]) -> None:
        for self._number, (kind, *rest) in enumerate(steps, 1):
            await getattr(self, kind)(*rest)
            self.seen.append(self.bus.head)
        await self._read_all()
        self.seen += [shown(self.bus.history(run)) for run in "ABC"]

    async def draft(self, run_id: str, ends_run: bool) -> None:
        if self._with_drafts:
            self.bus.publish_draft(draft(run_id, self._number, ends_run=ends_run))
            return
        data = {"n": self._number, "text": "x"}
        timestamp = float(self._number)
        self.bus.publish(Event(run_id=run_id, event_type="task.done", data=data, timestamp=timestamp))
        if ends_run:
            self.bus.close_stream(run_id)

    async def event(self, run_id: str) -> None:
        self.bus.publish(Event(run_id=run_id, event_type="other", timestamp=float(self._number)))

    async def close(self, run_id: str) -> None:
        self.bus.close_stream(run_id)

    async def history(self, run_id: str) -> None:
        self.seen.append(shown(self.bus.history(run_id)))

    async def stats(self) -> None:
        stats = self.bus.stats()
        self.seen += [stats["published_total"], stats["head"], stats["first"], stats["active_runs"]]

    async def subscribe(self, run_id: str | None) -> None:
        self._follow(self.bus.subscribe(run_id))

    async def resume(self, offset: int) -> None:
        self._follow(self.bus.subscribe(since=f"{self.bus.epoch}-{offset}"))

    async def leave(self) -> None:
        await self._read_all()
        if self._readers:
            subscription, _ = self._readers.pop()
            await subscription.aclose()

    def _follow(self, subscription: Subscription) -> None:
        events: list[object] = []
        self.seen.append(events)
        self._readers.append((subscription, events))

    async def _read_all(self) -> None:
        for subscription, events in self._readers:
            with trio.move_on_after(0):
                async for event in subscription:
                    events.extend(shown([event]))


def play(steps: list[tuple[Any, ...]], *, with_drafts: bool) -> list[object]:
    """What can be seen of a bus while these steps are done."""
    stage = Stage(with_drafts=with_drafts)
    trio.run(stage.play, steps)
    return stage.seen


@settings(max_examples=300, deadline=None)
@given(STEPS)
@example([("event", "C"), ("draft", "A", False), ("draft", "B", False), ("draft", "C", False)])
@example([("draft", "A", False), ("draft", "B", False), ("draft", "C", False), ("draft", "A", False)])
def test_a_draft_is_seen_as_an_event_would_be(steps: list[tuple[Any, ...]]) -> None:
    assert play(steps, with_drafts=True) == play(steps, with_drafts=False)


def test_an_event_that_was_a_draft_is_like_any_other() -> None:
    bus = EventBus(source="here")
    bus.publish_draft(draft("A", 1))
    (event,) = bus.history("A")
    assert event == Event(
        run_id="A",
        event_type="task.done",
        data={"n": 1, "text": "x"},
        offset=1,
        event_id=f"{bus.epoch}-1",
        timestamp=1.0,
        source="here",
    )
    assert type(event.data) is ReadOnlyDict
    assert msgspec.json.decode(msgspec.json.encode(event))["data"] == {"n": 1, "text": "x"}


async def test_live_readers_get_one_event_together() -> None:
    bus = EventBus()
    one, two = bus.subscribe_global(), bus.subscribe("A")
    bus.publish_drafts([draft("A", 1), draft("B", 2)])
    first = await anext(one)
    assert first is await anext(two)
    assert (first.offset, (await anext(one)).offset) == (1, 2)
    assert two.queued == 0


async def test_a_run_that_a_draft_ended_is_over_for_those_who_come_later() -> None:
    bus = EventBus()
    bus.publish_draft(draft("A", 1, ends_run=True))
    with trio.fail_after(1):
        assert [event.data["n"] async for event in bus.subscribe("A")] == [1]


@pytest.mark.parametrize("kind", ["one by one", "together"])
def test_what_waits_is_bounded_by_number_and_by_weight(kind: str) -> None:
    bus = EventBus()

    def publish(*drafts: Draft) -> None:
        if kind == "together":
            bus.publish_drafts(drafts)
        else:
            for each in drafts:
                bus.publish_draft(each)

    publish(*(draft("A", number) for number in range(QUIET_EVENTS - 1)))
    assert len(bus._quiet) == QUIET_EVENTS - 1  # noqa: SLF001 -- nothing else tells what waits
    publish(draft("A", 1))
    assert len(bus._quiet) == 0  # noqa: SLF001
    publish(draft("A", 2), draft("A", 3, weight=QUIET_WEIGHT + 1))
    assert len(bus._quiet) == 0  # noqa: SLF001
    assert bus.head == QUIET_EVENTS + 2


def test_heavy_drafts_push_old_events_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "RING_BYTES", 10_000)
    bus = EventBus()
    for number in range(20):
        bus.publish_draft(draft("A", number, weight=2_000))
    assert bus.stats()["first"] > 15


def test_a_closed_bus_ignores_drafts() -> None:
    bus = EventBus()
    bus.publish_draft(draft("A", 1))
    bus.close()
    bus.publish_draft(draft("A", 2))
    bus.publish_drafts([draft("A", 3)])
    assert bus.head == 1
    assert [event.data["n"] for event in bus.history("A")] == [1]
    assert bus.stats()["published_total"] == 1


async def test_other_threads_look_without_disturbing_who_publishes() -> None:
    bus = EventBus(history_per_run=100)
    is_over = threading.Event()
    seen: list[list[int]] = []

    def look() -> None:
        while not is_over.is_set():
            events = bus.history("A")
            seen.append([event.data["n"] for event in events])
            assert [event.offset for event in events] == [event.data["n"] + 1 for event in events]
            bus.stats()
            time.sleep(0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bus.run)
        await wait_all_tasks_blocked()
        nursery.start_soon(trio.to_thread.run_sync, look)
        for number in range(20_000):
            if number % 3:
                bus.publish_draft(draft("A", number))
            else:
                bus.publish(Event(run_id="A", event_type="other", data={"n": number}))
            assert bus.head == number + 1
            if number % 50 == 0:
                await trio.lowlevel.checkpoint()
        is_over.set()
        nursery.cancel_scope.cancel()
    assert [event.data["n"] for event in bus.history("A")] == list(range(19_900, 20_000))
    assert [event.offset for event in bus.history("A")] == list(range(19_901, 20_001))
    assert bus.stats()["lost_from_threads"] == 0
    for numbers in seen:
        first = numbers[0] if numbers else 0
        assert numbers == list(range(first, first + len(numbers)))


async def test_what_another_thread_brings_keeps_its_order_and_its_bound() -> None:
    bus = EventBus(max_queue_size=4)

    def bring() -> None:
        for number in range(3):
            bus.publish(Event(run_id="A", event_type="other", data={"n": number}))
            bus.publish_draft(draft("A", number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bus.run)
        await wait_all_tasks_blocked()
        thread = threading.Thread(target=bring)
        thread.start()
        thread.join(10)
        bus.publish_draft(draft("A", 9))
        nursery.cancel_scope.cancel()
    told = [(event.event_type, event.data["n"]) for event in bus.history("A")]
    assert told == [("other", 0), ("task.done", 0), ("other", 1), ("task.done", 1), ("task.done", 9)]
    assert bus.stats()["lost_from_threads"] == 2


async def test_a_signal_handler_in_the_middle_of_an_event_may_look() -> None:
    bus = EventBus()
    bus.publish_draft(draft("A", 1))
    seen: list[object] = []

    def look() -> None:
        began = time.perf_counter()
        seen.extend([bus.stats()["head"], len(bus.history("A")), time.perf_counter() - began < 0.1])

    reading = bus.subscribe("A")
    reading._subscriber.queue.wake = look  # noqa: SLF001 -- called inside, where a handler would interrupt
    bus.publish(Event(run_id="A", event_type="other"))
    assert seen == [2, 2, True]


def test_an_exception_from_a_signal_costs_no_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    class AlarmError(Exception):
        """What a handler of SIGALRM may raise."""

    class Interrupting(Ring):
        def append(self, event: Any, size: int) -> None:
            is_first = self.next == 300
            super().append(event, size)
            if is_first:
                raise AlarmError

    monkeypatch.setattr(bus_module, "Ring", Interrupting)
    bus = EventBus(history_per_run=2000)
    with pytest.raises(AlarmError):  # noqa: PT012 -- which of them raises is not what is tested
        for number in range(QUIET_EVENTS):
            bus.publish_draft(draft("A", number))
    bus.publish(Event(run_id="A", event_type="other", data={"n": QUIET_EVENTS}))
    kept = bus.history("A")
    assert [event.data["n"] for event in kept] == [*range(QUIET_EVENTS + 1)]
    assert [event.offset for event in kept] == list(range(1, QUIET_EVENTS + 2))
    assert bus.head == QUIET_EVENTS + 1
