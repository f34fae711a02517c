"""An exception out of a signal handler, at any step of the interpreter, leaves a bus as it should be."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import omniactors.events
from omniactors.events.bus import EventBus
from omniactors.events.event import GAP, Draft, Event
from omniactors.events.history import HEAVY

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from omniactors.events.subscription import Subscription

EVENTS = str(Path(omniactors.events.__file__).parent)


class AlarmError(Exception):
    """What the signal handler raises."""


class Interrupter:
    """Raises at the `number`-th instruction inside the code of the bus, once; instructions are counted from 1."""

    def __init__(self, number: int) -> None:
        self.count = 0
        self._number = number

    def during(self, action: Callable[[], object]) -> bool:
        """Run `action`; whether it was interrupted."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            action()
        except AlarmError:
            return True
        finally:
            sys.settrace(before)
        return False

    def _enter(self, frame: FrameType, _event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(EVENTS):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, _frame: FrameType, event: str, _argument: object) -> Any:
        if event == "opcode":
            self.count += 1
            if self.count == self._number:
                raise AlarmError
        return self._step


def draft(run_id: str, number: int, *, ends_run: bool = False) -> Draft:
    return Draft(run_id, "task.done", ("n",), (number,), 0, 1.0, ends_run)


class Stage:
    """A bus with all kinds of subscriptions, on which much is done; then it must be as if nothing had happened."""

    def __init__(self) -> None:
        self.bus = EventBus(max_queue_size=100, history_per_run=4, max_runs_retained=2)
        self.readers: list[Subscription] = []

    def prepare(self) -> None:
        bus = self.bus
        bus.publish_draft(draft("A", 0))
        self.readers = [
            bus.subscribe_global(),
            bus.subscribe(types=["task.*", "x"]),
            bus.subscribe(where={"data.n": 3}),
            bus.subscribe("A"),
            bus.subscribe_global(capacity=2),
            bus.subscribe_global(capacity=2, overflow="drop_oldest"),
        ]

    def play(self) -> None:
        bus = self.bus
        for number in range(4):
            bus.publish(Event(run_id="AB"[number % 2], event_type="x", data={"n": number}))
        bus.publish_draft(draft("A", 5))
        bus.publish(Event(run_id="C", event_type="x", data={"text": "x" * HEAVY}))
        bus.publish_drafts([draft("D", 6), draft("D", 7, ends_run=True)])
        bus.history("A")
        bus.stats()
        bus.close_stream("B")
        bus.subscribe(types=["x"], since=f"{bus.epoch}-1").close()

    def play_quietly(self) -> None:
        for number in range(3):
            self.bus.publish_draft(draft("AB"[number % 2], number))
        self.bus.history("A")
        self.bus.publish(Event(run_id="A", event_type="x"))

    async def check(self) -> None:
        """Everybody gets what comes now, and has got, or was told of, all that came before."""
        bus = self.bus
        bus.publish(Event(run_id="A", event_type="x", data={"n": 3}))
        self.readers.append(bus.subscribe_global())
        bus.publish(Event(run_id="A", event_type="x", data={"n": 3}))
        head = bus.head
        stats = bus.stats()
        assert stats["head"] == head
        kept = [event.offset for event in bus.history("A")]
        assert kept == sorted(set(kept))
        assert kept[-2:] == [head - 1, head]
        assert len(kept) <= 4
        bus.close()
        for reader in self.readers:
            assert reader.matched == reader.delivered + reader.dropped + reader.queued
            seen = [event async for event in reader]
            offsets = [event.offset for event in seen]
            assert offsets == sorted(set(offsets))
            assert offsets[-1] == head
            lost = sum(event.data["lost"] for event in seen if event.event_type == GAP)
            assert lost == reader.dropped
        everything = [event.offset async for event in bus.subscribe(since=f"{bus.epoch}-0")]
        assert everything == list(range(everything[0], head + 1))


def interrupted_at(number: int, play: Callable[[Stage], None], *, prepared: bool) -> int:
    """Interrupt a stage's play there and check it; how many instructions the play had when it was not interrupted."""
    stage, interrupter = Stage(), Interrupter(number)
    if prepared:
        stage.prepare()
    was_interrupted = interrupter.during(lambda: play(stage))
    if was_interrupted:
        interrupter.during(lambda: play(stage))  # goes on, as a program would
    trio.run(stage.check)
    return 0 if was_interrupted else interrupter.count


STEPS = [1] if os.environ.get("OMNIACTORS_SLOW") == "1" else [37]
"""A prime, so that all kinds of places are hit; with OMNIACTORS_SLOW every one is, which takes a minute."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("play", "prepared"), [(Stage.play, True), (Stage.play_quietly, False)])
def test_an_exception_at_any_instruction_leaves_the_bus_whole(
    play: Callable[[Stage], None], prepared: bool, step: int
) -> None:
    number, total = 1, 0
    while not total:
        total = interrupted_at(number, play, prepared=prepared)
        number += step
    assert number > total > 500


@pytest.mark.parametrize("step", STEPS)
def test_what_other_threads_brought_is_neither_lost_nor_doubled(step: int) -> None:
    async def main(number: int) -> bool:
        bus, interrupter = EventBus(), Interrupter(number)
        events = bus.subscribe_global()
        bus.claim()

        def bring() -> None:
            for n in range(3):
                bus.publish(Event(event_type="x", data={"n": n}))

        thread = threading.Thread(target=bring)
        thread.start()
        thread.join()
        was_interrupted = interrupter.during(lambda: bus.publish(Event(event_type="x", data={"n": 3})))
        bus.publish(Event(event_type="x", data={"n": 4}))
        seen = [event.data["n"] for event in await events.receive_batch()]
        assert seen in ([0, 1, 2, 3, 4], [0, 1, 2, 4])
        assert bus.head == len(seen)
        return was_interrupted

    number = 1
    while trio.run(main, number):
        number += step
    assert number > 500


@pytest.mark.parametrize("step", STEPS)
def test_a_reader_that_waits_is_woken_whatever_interrupts_who_publishes(step: int) -> None:
    async def main(number: int) -> bool:
        bus, interrupter = EventBus(), Interrupter(number)
        got: list[int] = []

        async def read(events: Subscription) -> None:
            while len(got) < 3:
                got.append((await events.receive()).offset)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, bus.subscribe_global())
                await trio.testing.wait_all_tasks_blocked()
                was_interrupted = interrupter.during(lambda: bus.publish(Event(event_type="x")))
                if bus.head:  # it was out before the exception came: nothing else has to wake the reader
                    await trio.testing.wait_all_tasks_blocked()
                    assert got == [1]
                while bus.head < 3:
                    bus.publish(Event(event_type="x"))
        assert got == [1, 2, 3]
        return was_interrupted

    number = 1
    while trio.run(main, number):
        number += step
    assert number > 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_in_the_middle_of_everything() -> None:
    def ring(*_: object) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, ring)
    end, tries = time.monotonic() + 0.5, 0
    try:
        while time.monotonic() < end or tries < 20:
            tries += 1
            stage = Stage()
            stage.prepare()
            try:
                # Again after a while: Python swallows what is raised inside a `__del__`, and trio's nurseries have one.
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.0001 * (tries % 20), 0.2)
                while True:
                    stage.play()
            except AlarmError:
                signal.setitimer(signal.ITIMER_REAL, 0)
            trio.run(stage.check)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
