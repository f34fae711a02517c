"""Scaling on Redis: more processes, more agents, more backlog, and what a runtime costs that has nothing to do.

Two worker processes share the work of one agent name; the machine is also redis-server's, so on two cores
twice is out of reach. Run: python -m tests.benchmarks.scaling
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import asynccontextmanager, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from omniactors import Agent, EventEnvelope, OmniActors
from tests.benchmarks.anchors import ROOT, bare
from tests.benchmarks.report import Row, show
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LIMIT = 100.0
"""Seconds after which a measurement is given up."""
WORK = 20_000
"""Numbers added up by the handler that does something: about half a millisecond."""
HEAVY_TASKS = 4_000
LIGHT_TASKS = 20_000
BACKLOG = 1_000_000
AGENTS = (1, 100, 1_000)
IDLE_SECONDS = 10
ROUNDS = 2


class Adder(Agent, topic="busy", name="busy"):
    """Computes for as long as the event says."""

    async def handle(self, event: EventEnvelope[int]) -> int:
        """Add numbers up."""
        return sum(range(event.payload.content))


class Tally:
    """How many events were handled here, and when the first and the last of them."""

    def __init__(self) -> None:
        self.count = 0
        self.first = 0.0
        self.last = 0.0

    def add(self) -> None:
        """One more."""
        self.last = time.perf_counter()
        self.count += 1
        if self.count == 1:
            self.first = self.last

    async def reach(self, count: int) -> None:
        """Wait until so many were handled."""
        with trio.fail_after(LIMIT):
            while self.count < count:  # noqa: ASYNC110 -- an event would cost the handler something
                await trio.sleep(0.005)


class Counting(Agent, topic="square", name="square"):
    """Counts."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    async def handle(self, event: EventEnvelope[int]) -> int:
        """The square of the content."""
        self.tally.add()
        return event.payload.content**2


# -- more processes -------------------------------------------------------------------------------


async def work(url: str) -> None:
    """What a worker process does until it is ended."""
    omni = OmniActors(url)
    omni.add(Adder)
    await omni.run(tell=lambda _line: None)


async def shared(url: str, *, workers: int, tasks: int, content: int) -> float:
    """Tasks per second of so many worker processes, from the moment when the work appears."""
    omni = OmniActors(url)
    command = [sys.executable, "-m", "tests.benchmarks.scaling", "work", url]
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                await nursery.start(partial(trio.run_process, command, cwd=ROOT, check=False))
            while len(await omni.runtimes()) < workers:  # noqa: ASYNC110 -- nothing tells when they are there
                await trio.sleep(0.05)
            begun = time.perf_counter()
            await omni.publish_batch([("busy", content)] * tasks)
            while await _completed(omni) < tasks:  # noqa: ASYNC110 -- nor when they are done
                await trio.sleep(0.02)
            elapsed = time.perf_counter() - begun
            nursery.cancel_scope.cancel()
        await omni.shutdown()
    return tasks / elapsed


async def _completed(omni: OmniActors) -> int:
    agents = (await omni.metrics()).get("busy", {})
    return agents["busy"]["tasks_processed"] if "busy" in agents else 0


# -- more agents, more backlog --------------------------------------------------------------------


@asynccontextmanager
async def with_agents(url: str, count: int, tally: Tally) -> AsyncIterator[OmniActors]:
    """A runtime with so many agents, each on a topic of its own."""
    omni = OmniActors(url)
    for number in range(count):
        omni.add(Counting, tally, name=f"agent-{number}", topic=f"topic-{number}")
    async with omni:
        yield omni


async def spread(url: str, *, agents: int, tasks: int) -> float:
    """Tasks per second when the tasks are spread over so many agents, publishing included."""
    tally = Tally()
    async with with_agents(url, agents, tally) as omni:
        begun = time.perf_counter()
        await omni.publish_batch([(f"topic-{number % agents}", number) for number in range(tasks)])
        await tally.reach(tasks)
        return tasks / (tally.last - begun)


async def worked_off(url: str, *, backlog: int, tasks: int) -> float:
    """Tasks per second of the first so many of a backlog that was there before the agent."""
    await bare.fill(url, tasks=backlog)
    tally = Tally()
    omni = OmniActors(url)
    omni.add(Counting, tally)
    async with omni:
        await tally.reach(tasks)
        return (tally.count - 1) / (tally.last - tally.first)


# -- nothing to do ----------------------------------------------------------------------------------


async def idle(url: str, *, agents: int) -> tuple[int, float, float]:
    """Connections of an idle runtime, its commands in 5 seconds, and its share of a core in percent."""
    async with with_agents(url, agents, Tally()), bare.connect(url) as watching, bare.connect(url) as asking:
        await trio.sleep(2)  # what the start caused is over
        [clients] = await asking.pipeline([("CLIENT", "LIST")])
        await watching.pipeline([("MONITOR",)])
        used = time.process_time()
        seen: list[bytes] = []
        with trio.move_on_after(IDLE_SECONDS):
            while True:
                seen.append(await watching.reply())
        used = time.process_time() - used
    # What a script calls is not a command that somebody sent.
    sent = [line for line in seen if b" lua] " not in line]
    return len(clients.splitlines()) - 2, len(sent) * 5 / IDLE_SECONDS, 100 * used / IDLE_SECONDS


def measure(server: RedisServer, *works: Callable[[str], Any]) -> list[float]:
    """The best rate of each work, measured in turns, each time on an empty server."""

    def once(measured: Callable[[str], Any]) -> float:
        server.command("FLUSHALL")
        return float(trio.run(measured, server.url))

    rounds = [[once(measured) for measured in works] for _ in range(ROUNDS)]
    return [max(rates) for rates in zip(*rounds, strict=True)]


def processes(server: RedisServer) -> list[Row]:
    """One worker process and two."""
    rows = []
    for name, tasks, content in (("half a millisecond", HEAVY_TASKS, WORK), ("nothing", LIGHT_TASKS, 0)):
        one, two = measure(server, *(partial(shared, workers=n, tasks=tasks, content=content) for n in (1, 2)))
        target = ">= 1.7x 1 process on 2 cores" if content else ""
        rows.append(Row(f"2 processes, a handler of {name}", two, {"1 process": one}, target=target))
    return rows


def rows() -> list[Row]:
    """Measure everything here; about two minutes."""
    with (
        redirect_stderr(StringIO()),
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder) / "redis") as server,
    ):
        found = processes(server)
        rates = measure(server, *(partial(spread, agents=agents, tasks=LIGHT_TASKS) for agents in AGENTS))
        found += [
            Row(f"tasks spread over {agents:,} agents", rate, {"1 agent": rates[0]}, target=">= 0.8x 1 agent")
            for agents, rate in zip(AGENTS, rates, strict=True)
        ]
        (short,) = measure(server, partial(worked_off, backlog=LIGHT_TASKS, tasks=LIGHT_TASKS))
        server.command("FLUSHALL")
        long = trio.run(partial(worked_off, backlog=BACKLOG, tasks=LIGHT_TASKS), server.url)
        anchors = {f"a backlog of {LIGHT_TASKS:,}": short}
        found.append(Row(f"the first {LIGHT_TASKS:,} of a backlog of {BACKLOG:,}", long, anchors, target=">= 0.8x"))
        server.command("FLUSHALL")
        connections, commands, share = trio.run(partial(idle, agents=AGENTS[-1]), server.url)
    what = f"an idle runtime with {AGENTS[-1]:,} agents"
    return [
        *found,
        Row(f"connections of {what}", connections, target="<= 4", unit="connections"),
        Row(f"commands of {what} in 5 s", commands, target="<= 3", unit="commands"),
        Row(f"CPU of {what}", share, target="< 1 %", unit="%"),
    ]


def main() -> None:
    """Print the rows, or be a worker."""
    if len(sys.argv) > 1:
        trio.run(work, sys.argv[2])
    else:
        show(rows())


if __name__ == "__main__":
    main()
