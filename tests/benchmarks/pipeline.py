"""Durable tasks on the embedded file: the whole way of a task, and publishing alone.

The bare limit writes rows of the same bytes with `sqlite3`, in WAL with synchronous=FULL as ours: no
envelope, no groups, no settlement, no second process to share with. A task is written at least twice
(publish, settlement), so the pipeline cannot reach that limit. Run: python -m tests.benchmarks.pipeline
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import trio

from omniactors import Agent, EventEnvelope, OmniActors
from tests.benchmarks.report import Row, show

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TASKS = 10_000
ALONE = 500
"""Publishes one after another: each waits for the disk, so there are fewer of them."""
PUBLISHERS = 100
BATCH = 100
BODY = b'{"content":1234,"webhook":null,"task_id":"4c1f5d0e-8f0e-4b6c-9d57-0d9b0c8a7f11","topic":"square"}' * 2
ROUNDS = 3


class Square(Agent, topic="square", name="square"):
    """The least that an agent can do."""

    async def handle(self, event: EventEnvelope[int]) -> int:
        """The square of the content."""
        return event.payload.content**2


async def pipeline(url: str) -> float:
    """Tasks per second from the first publish to the last result, by one agent with concurrency 1."""
    omni = OmniActors(url)
    omni.add(Square)
    async with omni:
        begun = time.perf_counter()
        ids = await omni.publish_batch([("square", number) for number in range(TASKS)])
        # One instance keeps the order, so the last result is there after all others.
        last = await omni.wait_result(ids[-1])
        elapsed = time.perf_counter() - begun
        if last != (TASKS - 1) ** 2 or await omni.get_result(ids[0]) != 0:
            raise RuntimeError("the agent computed something else")
    return TASKS / elapsed


async def publish(url: str, *, publishers: int, tasks: int) -> float:
    """Durable publishes per second by so many trio tasks, each one waiting for its own; nothing else runs."""
    omni = OmniActors(url)
    await omni.publish("square", 0)

    async def publish_some() -> None:
        for number in range(tasks // publishers):
            await omni.publish("square", number)

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(publishers):
            nursery.start_soon(publish_some)
    elapsed = time.perf_counter() - begun
    await omni.shutdown()
    return tasks / elapsed


def on_file(work: Callable[[str], Awaitable[float]]) -> Callable[[Path], Awaitable[float]]:
    """The work, on a file in a folder."""
    return lambda folder: work(f"sqlite:///{folder}/work.db")


async def bare(folder: Path, *, batch: int, tasks: int) -> float:
    """Rows per second that `sqlite3` makes durable in transactions of `batch` rows, without a thread."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, body BLOB NOT NULL)")
    begun = time.perf_counter()
    for start in range(0, tasks, batch):
        connection.execute("BEGIN IMMEDIATE")
        rows = ((number, "square", BODY) for number in range(start, start + batch))
        connection.executemany("INSERT INTO entry VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")
    elapsed = time.perf_counter() - begun
    connection.close()
    await trio.lowlevel.checkpoint()
    return tasks / elapsed


def measure(*kinds: Callable[[Path], Awaitable[float]]) -> list[float]:
    """The median rate of each kind, measured in turns, each time in a new folder."""

    def once(kind: Callable[[Path], Awaitable[Any]]) -> float:
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
            return float(trio.run(kind, Path(folder)))

    rounds = [[once(kind) for kind in kinds] for _ in range(ROUNDS)]
    return [median(rates) for rates in zip(*rounds, strict=True)]


def rows() -> list[Row]:
    """Measure everything here; some seconds."""
    whole, batches = measure(on_file(pipeline), partial(bare, batch=BATCH, tasks=10 * TASKS))
    one, single = measure(
        on_file(partial(publish, publishers=1, tasks=ALONE)),
        partial(bare, batch=1, tasks=ALONE),
    )
    many, limit = measure(
        on_file(partial(publish, publishers=PUBLISHERS, tasks=TASKS)),
        partial(bare, batch=BATCH, tasks=10 * TASKS),
    )
    return [
        Row("durable task on the file, whole pipeline", whole, bare=batches, target=">= 15 k/s"),
        Row("publish on the file, 1 task", one, bare=single, target=">= 0.8x bare"),
        Row(f"publish on the file, {PUBLISHERS} tasks", many, bare=limit, target=">= 0.8x bare"),
    ]


def main() -> None:
    """Print the rows."""
    show(rows())


if __name__ == "__main__":
    main()
