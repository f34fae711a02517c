"""Processes that die while they handle events: who is to blame is put away, and nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from omniactors import Agent, EventEnvelope, OmniActors, PayloadBase
from omniactors.agents.demand import Demand
from omniactors.agents.lane import Delivery, Suspect
from omniactors.streams.settlement import EntryKey
from tests.agents.faulty import Scene
from tests.agents.test_demand import agent
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omniactors.streams.backend import Fetched

ROOT = Path(__file__).parents[2]

PROGRAM = """
import _thread, os, signal, sys
import msgspec, trio
from omniactors import Agent, EventEnvelope, OmniActors

url, how = sys.argv[1:]


class Content(msgspec.Struct):
    number: int

    def __post_init__(self):
        if how == "decoder" and self.number < 0:
            os._exit(9)


class Doubtful(Agent, topic="doubtful", name="doubtful"):
    async def handle(self, event: EventEnvelope[Content]) -> int:
        await trio.sleep(0.01)
        if event.payload.content.number < 0:
            match how:
                case "exit":
                    os._exit(9)
                case "SIGKILL" | "SIGSEGV":
                    os.kill(os.getpid(), getattr(signal, how))
                case "KeyboardInterrupt":
                    raise KeyboardInterrupt
                case "interrupt_main":
                    _thread.interrupt_main()
                    await trio.sleep_forever()
                case "SIGTERM" | "SIGINT":
                    os.kill(os.getpid(), getattr(signal, how))
                    await trio.sleep_forever()
                case "raise_signal":
                    signal.raise_signal(signal.SIGTERM)
                    await trio.sleep_forever()
                case "thread":
                    await trio.to_thread.run_sync(os.kill, os.getpid(), signal.SIGTERM)
                    await trio.sleep_forever()
        return 1


class Innocent(Agent, topic="innocent", name="innocent", concurrency=3):
    async def handle(self, event: EventEnvelope[int]) -> int:
        await trio.sleep(0.02)
        return 1


async def is_done(omni):
    return not any(stream.length for stream in await omni.streams.list())


async def live():
    omni = OmniActors(url)
    omni.add(Doubtful)
    omni.add(Innocent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ending, omni, nursery.cancel_scope)
        await omni.run(tell=lambda line: None)
        if not await is_done(omni):
            os._exit(1)
        nursery.cancel_scope.cancel()


async def ending(omni, scope):
    while not await is_done(omni):
        await trio.sleep(0.05)
    os._exit(0)


for number in range(40):
    process = os.fork()
    if process == 0:
        os.setsid()
        sys.stderr = open(os.devnull, "w")
        try:
            trio.run(live)
        finally:
            os._exit(1)
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0:
        break
print(number, flush=True)
"""
"""Runs one process after the other until nothing is left to do, and tells how many of them died."""


DELIVERY = Delivery(EntryKey("a", "a", "1-1"), EventEnvelope(topic="a", payload=PayloadBase(content=1)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'work.db'}"
    server: RedisServer = request.getfixturevalue("server")
    server.command("FLUSHALL")
    return server.url


@pytest.mark.parametrize(
    "how",
    [
        "exit",
        "SIGKILL",
        "SIGSEGV",
        "decoder",
        "KeyboardInterrupt",
        "interrupt_main",
        "SIGTERM",
        "SIGINT",
        "raise_signal",
        "thread",
    ],
)
def test_an_event_that_ends_its_process_is_put_away_and_no_other(url: str, how: str) -> None:
    async def publish() -> None:
        omni = OmniActors(url)
        await omni.publish("doubtful", {"number": -1})
        await omni.publish_batch([("doubtful", {"number": number}) for number in range(5)])
        await omni.publish_batch([("innocent", number) for number in range(30)])
        await omni.shutdown()

    async def dead_letters() -> list[tuple[str, str, object]]:
        omni = OmniActors(url)
        letters = [letter for topic in ("doubtful", "innocent") for letter in await omni.streams.dlq(topic)]
        counts = await omni.metrics()
        await omni.shutdown()
        assert counts["innocent"]["innocent"]["tasks_processed"] == 30
        assert counts["doubtful"]["doubtful"]["tasks_processed"] == 5
        return [(letter.agent, letter.reason, letter.failed_message["content"]) for letter in letters]

    trio.run(publish)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, url, how],
        cwd=ROOT,
        env={**os.environ, "OMNIACTORS_GRACE": "0.05"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "5\n")
    assert trio.run(dead_letters) == [("doubtful", "crash-loop", {"number": -1})]


STOPPED = """
import os, signal, sys, time
import trio
from omniactors import Agent, EventEnvelope, OmniActors

url, last = sys.argv[1], getattr(signal, sys.argv[2])
ours, theirs = os.pipe()


class Patient(Agent, topic="patient", name="patient"):
    async def handle(self, event: EventEnvelope[int]) -> None:
        os.write(theirs, b"!")
        end = time.monotonic() + 0.1
        while time.monotonic() < end:  # so that the signal finds it at work
            pass
        with trio.CancelScope(shield=last == signal.SIGKILL):
            await trio.sleep_forever()


async def live():
    omni = OmniActors(url)
    omni.add(Patient)
    await omni.run(tell=lambda line: None)


for number in range(6):
    process = os.fork()
    if process == 0:
        try:
            trio.run(live)
        finally:
            os._exit(0)
    os.read(ours, 1)
    os.kill(process, signal.SIGTERM)
    if last == signal.SIGKILL:
        trio.run(trio.sleep, 0.3)
        os.kill(process, last)
    os.waitpid(process, 0)
"""
"""Six times a process is stopped from outside while it handles one and the same event."""


@pytest.mark.parametrize("last", ["SIGTERM", "SIGKILL"])
def test_an_event_whose_process_is_stopped_again_and_again_from_outside_is_not_to_blame(url: str, last: str) -> None:
    """Also when its handler does not let itself be cancelled, and somebody's patience ends."""

    async def handled() -> tuple[list[object], int]:
        omni = OmniActors(url)
        letters = await omni.streams.dlq("patient")
        (waiting,) = [stream.length for stream in await omni.streams.list()]
        await omni.shutdown()
        return [*letters], waiting

    trio.run(OmniActors(url).publish, "patient", 1)
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, url, last],
        cwd=ROOT,
        env={**os.environ, "OMNIACTORS_GRACE": "0.05"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert trio.run(handled) == ([], 1)


KILLED = """
import os, signal, sys
import trio
from omniactors import Agent, EventEnvelope, OmniActors

url = sys.argv[1]
ours, theirs = os.pipe()


class Innocent(Agent, topic="innocent", name="innocent", concurrency=8):
    async def handle(self, event: EventEnvelope[int]) -> None:
        os.write(theirs, b"!")
        await trio.sleep_forever()


async def live():
    omni = OmniActors(url)
    omni.add(Innocent)
    await omni.run(tell=lambda line: None)


for number in range(10):
    process = os.fork()
    if process == 0:
        try:
            trio.run(live)
        finally:
            os._exit(0)
    for _ in range(8 if number < 3 else 1):
        os.read(ours, 1)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
"""
"""Ten times a process is killed from outside while it handles the same eight events, of which none is to blame."""


def test_kills_from_outside_put_nobody_away_who_was_not_alone_each_time(url: str) -> None:
    async def publish() -> None:
        omni = OmniActors(url)
        await omni.publish_batch([("innocent", number) for number in range(8)])
        await omni.shutdown()

    async def found() -> tuple[list[object], list[int]]:
        omni = OmniActors(url)
        letters = await omni.streams.dlq("innocent")
        lengths = [stream.length for stream in await omni.streams.list()]
        await omni.shutdown()
        return [*letters], lengths

    trio.run(publish)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, url], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert trio.run(found) == ([], [8])


class TestAlone:
    """A suspect is handled when nothing else is at work in its process."""

    def test_nothing_is_fetched_beside_a_suspect_and_it_begins_when_all_else_is_done(self) -> None:
        demand = Demand()
        suspected, other = agent(demand, "a"), agent(demand, "b")
        other.lane.held = 2
        assert set(demand.isolate(suspected)) == {suspected, other}
        suspected.lane.put_suspect(Suspect(3, DELIVERY))
        demand.advance()
        assert demand.take() is None
        assert suspected.lane.take() is None
        other.lane.settled(2, 0.0)
        assert suspected.lane.take() is DELIVERY
        assert demand.take() is None
        suspected.lane.settled(1, 0.1)
        assert {want.agent for want in demand.take() or ()} == {"a", "b"}

    def test_a_suspect_that_is_given_back_ends_its_isolation(self) -> None:
        """Its agent was paused, or gave up."""
        demand = Demand()
        suspected = agent(demand, "a")
        demand.isolate(suspected)
        suspected.lane.put_suspect(Suspect(3, DELIVERY))
        assert suspected.lane.clear() == [DELIVERY]
        suspected.lane.settled(1, 0.0)
        assert not demand.is_shut
        assert demand.take() is not None

    def test_suspects_take_turns_before_anybody_else(self) -> None:
        demand = Demand()
        one, other = agent(demand, "a"), agent(demand, "b")
        for suspected in (one, other):
            demand.isolate(suspected)
            suspected.lane.put_suspect(Suspect(3, DELIVERY))
        demand.advance()
        assert (one.lane.take(), other.lane.take()) == (DELIVERY, None)
        one.lane.settled(1, 0.0)
        assert other.lane.take() is DELIVERY
        assert demand.take() is None
        other.lane.settled(1, 0.0)
        assert demand.take() is not None

    def test_the_suspect_with_the_fewest_crashes_goes_first_but_not_ahead_of_its_key(self) -> None:
        demand = Demand()
        one, other = agent(demand, "a"), agent(demand, "b")
        first, second, third = (
            Delivery(EntryKey("a", "a", f"{number}-1"), DELIVERY.event, ordering)
            for number, ordering in enumerate(("key", "key", None))
        )
        for suspected, suspect in (
            (one, Suspect(4, first)),
            (one, Suspect(3, second)),
            (other, Suspect(4, third)),
            (other, Suspect(3, DELIVERY)),
        ):
            demand.isolate(suspected)
            suspected.lane.put_suspect(suspect)
        begun = []
        for _ in range(4):
            demand.advance()
            for suspected in (one, other):
                while (delivery := suspected.lane.take()) is not None:
                    begun.append(delivery)
                    suspected.lane.handled(delivery, None)
                    suspected.lane.settled(1, 0.0)
                    demand.advance()
        assert begun == [DELIVERY, first, second, third]

    def test_others_have_their_turn_when_a_suspect_waits_for_too_long(self) -> None:
        """A handler that is at work may wait for the result of what is not fetched meanwhile."""
        demand = Demand()
        suspected, busy = agent(demand, "a"), agent(demand, "b")
        busy.lane.held = 1
        demand.isolate(suspected)
        suspected.lane.put_suspect(Suspect(3, DELIVERY))
        demand.advance()
        demand.relent()
        assert demand.take() is not None
        assert suspected.lane.take() is None
        assert demand.isolate(suspected) == [], "another one that comes now does not end the turn of others"
        busy.lane.settled(1, 0.0)
        assert demand.is_shut, "it is alone now"
        assert suspected.lane.take() is DELIVERY
        demand.relent()
        suspected.lane.settled(1, 0.0)
        assert demand.shut() == []

    async def test_its_neighbours_go_back_uncounted_and_running_handlers_are_waited_for(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        log: list[str] = []
        begun, go_on = trio.Event(), trio.Event()

        class Slow(Agent, topic="slow", name="slow"):
            async def handle(self, event: EventEnvelope[int]) -> None:
                log.append(f"slow {event.payload.content}")
                begun.set()
                await go_on.wait()
                log.append(f"slow {event.payload.content} done")

        class Doubtful(Agent, topic="doubtful", name="doubtful"):
            async def handle(self, event: EventEnvelope[int]) -> None:
                log.append("suspect")
                await trio.sleep(0.02)
                log.append("suspect done")

        def suspect(fetched: Fetched) -> Fetched:
            is_doubtful = {entry.key.topic for entry in fetched.entries} == {"doubtful"}
            entries = [msgspec.structs.replace(entry, crashes=3 * is_doubtful) for entry in fetched.entries]
            return msgspec.structs.replace(fetched, entries=entries)

        scene = Scene(Slow, Doubtful)
        async with scene.running():
            for number in range(2):
                await scene.tasks.publish_batch([("slow", number)])
            await begun.wait()
            while scene.runtime.held_events()["slow"] < 2:  # noqa: ASYNC110 -- the store is a real one, in a thread
                await trio.sleep(0.01)
            scene.store.answers["fetch"] = [suspect] * 100
            (task_id,) = await scene.tasks.publish_batch([("doubtful", 0)])
            while not scene.store.calls["release"]:  # noqa: ASYNC110 -- as above
                await trio.sleep(0.01)
            assert log == ["slow 0"]
            go_on.set()
            while len(log) < 6:  # noqa: ASYNC110 -- as above
                await trio.sleep(0.01)
        assert log == ["slow 0", "slow 0 done", "suspect", "suspect done", "slow 1", "slow 1 done"]
        (told,) = caplog.messages
        assert told.startswith(f"agent doubtful: a process ended 3 times while task {task_id} was handled; ")

    async def test_a_process_has_one_suspect_at_a_time_and_the_others_go_back_uncounted(self) -> None:
        """Another process may handle them meanwhile; and if this one dies and nobody knows of what, it held one."""
        log: list[object] = []

        class Doubtful(Agent, topic="doubtful", name="doubtful", concurrency=3):
            async def handle(self, event: EventEnvelope[int]) -> None:
                held = scene.runtime.held_events()["doubtful"]
                log.append((event.payload.content, held))

        def suspect(fetched: Fetched) -> Fetched:
            entries = [msgspec.structs.replace(entry, crashes=3) for entry in fetched.entries]
            return msgspec.structs.replace(fetched, entries=entries)

        scene = Scene(Doubtful)
        scene.store.answers["fetch"] = [suspect] * 100
        await scene.tasks.publish_batch([("doubtful", number) for number in range(3)])
        async with scene.running():
            while len(log) < 3:  # noqa: ASYNC110 -- the store is a real one, in a thread
                await trio.sleep(0.01)
        assert log == [(0, 1), (1, 1), (2, 1)]
        assert scene.store.calls["release"]
