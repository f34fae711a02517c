"""One OmniActors in many hands: threads, trio runs side by side, forked children, programs on asyncio."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import Agent, AgentConfig, EventEnvelope, OmniActors, OmniActorsError, SubscriptionConfig
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that is empty, and shared by all who have its address."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'work.db'}"
    server: RedisServer = request.getfixturevalue("server")
    server.command("FLUSHALL")
    return server.url


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Have so many threads work at the same time; raises what one of them raised."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 -- it is raised below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def stored(omni: OmniActors, topic: str) -> int:
    return sum(stream.length for stream in await omni.streams.list() if stream.topic == topic)


def test_views_in_threads_publish_and_read_results_through_one_object(url: str) -> None:
    omni = OmniActors(url)

    def view(number: int) -> None:
        for item in range(20):
            assert trio.run(omni.get_result, trio.run(omni.publish, "views", f"{number}-{item}")) is None

    in_threads(4, view)
    assert trio.run(stored, omni, "views") == 80
    trio.run(omni.shutdown)


def test_long_runs_in_threads_publish_side_by_side(url: str) -> None:
    omni = OmniActors(url)

    async def many(number: int) -> None:
        async with trio.open_nursery() as nursery:
            for item in range(50):
                nursery.start_soon(omni.publish, "many", f"{number}-{item}")
        await omni.publish_batch([("many", item) for item in range(50)])

    in_threads(4, lambda number: trio.run(many, number))
    assert trio.run(stored, omni, "many") == 400
    trio.run(omni.shutdown)


class Upper(Agent, topic="upper"):
    async def handle(self, event: EventEnvelope[str]) -> str:
        return event.payload.content.upper()


async def test_threads_publish_and_wait_beside_the_running_system(url: str) -> None:
    omni = OmniActors(url)
    omni.add(Upper, concurrency=4)

    async def ask(text: str) -> Any:
        with trio.fail_after(20):
            return await omni.wait_result(await omni.publish("upper", text))

    def view(number: int) -> None:
        for item in range(5):
            assert trio.run(ask, f"a{number}-{item}") == f"A{number}-{item}"

    async with omni:
        await trio.to_thread.run_sync(in_threads, 4, view)
        assert await ask("end") == "END"


async def test_a_plain_callback_publishes_with_a_trio_run_of_its_own(url: str) -> None:
    omni = OmniActors(url)
    omni.add(Upper)

    def callback(message: dict[str, Any]) -> str:
        return trio.run(omni.publish, "upper", message["content"])

    config = SubscriptionConfig(consumer_count=3)
    omni.add(AgentConfig(topic="plain", callback=callback, name="plain", config=config))
    with trio.fail_after(30):
        async with omni:
            for task_id in await omni.publish_batch([("plain", f"t{number}") for number in range(20)]):
                assert isinstance(await omni.wait_result(await omni.wait_result(task_id)), str)


async def test_what_changes_the_running_system_is_refused_in_another_thread_and_changes_nothing() -> None:
    omni = OmniActors("memory://")
    omni.add(Upper)
    config = AgentConfig(topic="late", callback=lambda _: None, name="late")

    def elsewhere() -> None:
        for call in (
            lambda: omni.add(Upper, name="late"),
            lambda: trio.run(lambda: omni.register_agent(config)),
            lambda: trio.run(omni.shutdown),
        ):
            with pytest.raises(OmniActorsError, match="in another thread's trio run"):
                call()

    with trio.fail_after(20):
        async with omni:
            await trio.to_thread.run_sync(elsewhere)
            assert len(omni.agent_names()) == 1
            await trio.to_thread.run_sync(lambda: trio.from_thread.run(omni.register_agent, config))
            assert omni.agent_names()[1:] == ["late"]
            assert await omni.wait_result(await omni.publish("upper", "x")) == "X"


def test_a_run_that_ends_in_the_middle_of_a_call_leaves_nothing_behind_for_others(url: str) -> None:
    omni = OmniActors(url)

    async def crash() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(omni.publish, "crash", number)
            await trio.lowlevel.checkpoint()
            raise RuntimeError("in the middle")

    async def give_up() -> None:
        with trio.move_on_after(0.001):
            for number in range(1000):
                await omni.publish("crash", number)

    def view(number: int) -> None:
        for _ in range(5):
            with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="in the middle")):
                trio.run(crash)
            trio.run(give_up)
            trio.run(omni.publish, "fine", number)

    in_threads(4, view)
    assert trio.run(stored, omni, "fine") == 20
    trio.run(omni.shutdown)


def test_a_thousand_runs_leave_no_connection_and_no_memory(server: RedisServer) -> None:
    server.command("FLUSHALL")
    omni = OmniActors(server.url)
    trio.run(omni.publish, "runs", 0)
    gc.collect()
    before, objects = descriptors(), len(gc.get_objects())
    for number in range(1000):
        trio.run(omni.publish, "runs", number)
    assert descriptors() == before
    gc.collect()
    assert len(gc.get_objects()) - objects < 500
    with server.sync() as client:
        assert len(client.keys("omni-calls:*")) == 1, "the server keeps something for each run"
        assert client.xlen("omni-stream:runs") == 1001


def test_a_connection_that_waited_for_a_result_ends_with_its_run(server: RedisServer) -> None:
    omni = OmniActors(server.url)

    async def wait() -> None:
        with trio.move_on_after(0.05):
            await omni.wait_result("never")

    with server.sync() as client:
        for _ in range(5):
            trio.run(wait)
        gc.collect()
        assert len(client.client_list()) == 1


FORKS = """
import os, sys, threading, time
import trio
from omniactors import OmniActors

omni = OmniActors(sys.argv[1])
trio.run(omni.publish, "forked", "first")
told, stop = [], threading.Event()

async def publish_on():
    while not stop.is_set():
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(publish, f"parent-{number}")

async def publish(name):
    told.append(await omni.publish("forked", name))

async def some():
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(publish, f"child-{number}")
    told.extend(await omni.publish_batch([("forked", 1), ("forked", 2)]))

threads = [threading.Thread(target=trio.run, args=(publish_on,), daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
while len(told) < 10:
    time.sleep(0.001)
reading, writing = os.pipe()
children = []
for number in range(20):
    time.sleep(0.003)
    if (pid := os.fork()) == 0:
        told.clear()
        trio.run(some)
        trio.run(publish, "again")
        os.write(writing, "".join(f"{task_id}\\n" for task_id in told).encode())
        os._exit(0)
    children.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
stop.set()
for thread in threads:
    thread.join()
os.close(writing)
with os.fdopen(reading) as pipe:
    ids = told + pipe.read().split()

async def stored():
    return sum(stream.length for stream in await omni.streams.list())

print(len(children), len(ids) - len(set(ids)), 1 + len(ids) - trio.run(stored))
"""


SERVED_BY_THE_PARENT = """
import os, sys, threading
import trio
from omniactors import Agent, EventEnvelope, OmniActors, OmniActorsError

omni = OmniActors(sys.argv[1])
ready, stop = threading.Event(), threading.Event()

class Double(Agent, topic="double"):
    async def handle(self, event: EventEnvelope[int]) -> int:
        return event.payload.content * 2

async def serve():
    async with omni:
        ready.set()
        while not stop.is_set():
            await trio.sleep(0.01)
            await omni.publish("beside", 1)

async def ask(number):
    with trio.fail_after(20):
        return await omni.wait_result(await omni.publish("double", number))

omni.add(Double)
thread = threading.Thread(target=trio.run, args=(serve,), daemon=True)
thread.start()
assert ready.wait(20)
children = []
for number in range(5):
    if (pid := os.fork()) == 0:
        os._exit(trio.run(ask, number) == 2 * number and trio.run(ask, number) == 2 * number)
    children.append(pid)
    assert trio.run(ask, number) == 2 * number
assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [1] * 5

async def run_own():
    try:
        async with omni:
            return await ask(8) == 16
    except OmniActorsError as error:
        assert "forked while the system ran" in str(error)
        return 2

if os.fork() == 0:
    os._exit(trio.run(run_own))
stop.set()
thread.join(20)
if os.fork() == 0:
    os._exit(trio.run(run_own))
assert sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in "ab") == [1, 2]
print("fine")
"""

OUTLIVES_ITS_PARENT = """
import os, sys
import trio
from omniactors import OmniActors

omni = OmniActors(sys.argv[1])
trio.run(omni.publish, "kept", "parent")
reading, writing = os.pipe()
told, tell = os.pipe()
if (pid := os.fork()) == 0:
    trio.run(omni.publish, "kept", "child, before")
    os.write(tell, b"x")
    os.read(reading, 1)
    trio.run(omni.publish, "kept", "child, after")
    os._exit(0)
os.read(told, 1)
trio.run(omni.publish, "kept", "parent again")
trio.run(omni.shutdown)
os.write(writing, b"x")
os.waitpid(pid, 0)

async def stored():
    return sum(stream.length for stream in await omni.streams.list())

assert trio.run(stored) == 4
print("fine")
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")


def run_program(program: str, url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, url],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if not line.startswith("omniactors: ")]
    assert (lines, done.returncode) == ([], 0)
    return done.stdout


@needs_fork
def test_forked_children_of_a_busy_publisher_lose_nothing(url: str) -> None:
    assert run_program(FORKS, url).split() == ["20", "0", "0"], "children, ids given twice, acknowledged but not stored"


@needs_fork
@pytest.mark.parametrize("program", [SERVED_BY_THE_PARENT, OUTLIVES_ITS_PARENT], ids=["served", "outlives"])
def test_a_forked_child_works_beside_its_parent_and_after_it(url: str, program: str) -> None:
    assert run_program(program, url) == "fine\n"


def test_asyncio_is_told_what_to_do(url: str) -> None:
    omni = OmniActors(url)

    async def main() -> str:
        for call in (omni.publish("t", 1), omni.get_result("x"), omni.run(), omni.__aenter__(), omni.shutdown()):
            with pytest.raises(OmniActorsError, match=r"await asyncio.to_thread\(trio.run, omni.publish, topic"):
                await call
        for call in (omni.storage.backup("copy.db"), omni.storage.restore("copy.db")):
            with pytest.raises(OmniActorsError, match=r"await asyncio\.to_thread"):
                await call
        return await asyncio.to_thread(trio.run, omni.publish, "t", 1)  # type: ignore[arg-type]  # mypy cannot tell

    assert asyncio.run(main())
    trio.run(omni.shutdown)
