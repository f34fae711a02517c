"""Durable tasks on Redis in one process: publish, handle, keep the result, acknowledge; and publishing alone.

One redis-server without persistence serves all, one after another, empty each time. The bare limit is a
loop written by hand over one connection (`anchors.bare`). The anchors run with their default settings,
but for what their files say, and with their results in Redis; FastStream keeps none. OmniDaemon as it is
installed keeps them in a file.
Run: python -m tests.benchmarks.redis_tasks
"""

from __future__ import annotations

import tempfile
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import trio

from tests.benchmarks import pipeline
from tests.benchmarks.anchors import anchor, bare
from tests.benchmarks.report import Row, show
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

TASKS = 10_000
SLOW_TASKS = 1_000
"""For anchors that take their time."""
SLOWEST_TASKS = 300
"""For OmniDaemon with its default store, which takes longer the more results there are."""
ALONE = 2_000
"""Publishes one after another."""
PUBLISHERS = 100
ROUNDS = 3
ANCHORS = {"OmniDaemon": "omnidaemon", "FastStream": "faststream", "SAQ": "saq", "arq": "arq"}
"""Their names, and those of their programs."""
PUBLISHING_ANCHORS = ("OmniDaemon", "FastStream")


def in_turns(server: RedisServer, works: Mapping[str, Callable[[str], float | None]]) -> dict[str, float | None]:
    """The median rate of each work, measured in turns, each time on an empty server."""

    def once(work: Callable[[str], float | None]) -> float | None:
        server.command("FLUSHALL")
        return work(server.url)

    rounds = [{name: once(work) for name, work in works.items()} for _ in range(ROUNDS)]
    found = {name: [rate for turn in rounds if (rate := turn[name]) is not None] for name in works}
    return {name: median(rates) if rates else None for name, rates in found.items()}


def on_trio(work: Callable[[str], Awaitable[float]]) -> Callable[[str], float]:
    """The work as a call that runs it."""

    def run(url: str) -> float:
        with redirect_stderr(StringIO()):
            return trio.run(work, url)

    return run


def row(name: str, rates: Mapping[str, float | None], target: str) -> Row:
    """The rates as a line of the report."""
    rest = dict(rates)
    ours, limit = rest.pop("ours"), rest.pop("bare")
    if ours is None:
        raise RuntimeError(f"nothing of ours was measured for {name}")
    return Row(name, ours, rest, limit, target)


def tasks(server: RedisServer) -> Row:
    """The whole way of a task."""
    works: dict[str, Callable[[str], float | None]] = {
        "ours": on_trio(pipeline.pipeline),
        "bare": on_trio(partial(bare.pipeline, tasks=TASKS)),
    }
    for name, program in ANCHORS.items():
        works[name] = partial(anchor, program, "pipeline", tasks=SLOW_TASKS)
    works["OmniDaemon as installed"] = partial(anchor, "omnidaemon_files", "pipeline", tasks=SLOWEST_TASKS)
    return row("durable task on Redis", in_turns(server, works), ">= 30x OmniDaemon, >= 10x FastStream, >= 0.5x bare")


def publishing(server: RedisServer, *, publishers: int, count: int) -> Row:
    """Publishing alone, by so many tasks."""
    works: dict[str, Callable[[str], float | None]] = {
        "ours": on_trio(partial(pipeline.publish, publishers=publishers, tasks=count)),
        "bare": on_trio(partial(bare.publish, publishers=publishers, tasks=count)),
    }
    for name in PUBLISHING_ANCHORS:
        works[name] = partial(anchor, ANCHORS[name], "publish", tasks=ALONE, publishers=publishers)
    what = "1 task" if publishers == 1 else f"{publishers} tasks"
    return row(f"publish on Redis, {what}", in_turns(server, works), ">= 0.8x bare")


def rows() -> list[Row]:
    """Measure everything here; about a minute with all anchors."""
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder) / "redis") as server:
        return [
            tasks(server),
            publishing(server, publishers=1, count=ALONE),
            publishing(server, publishers=PUBLISHERS, count=2 * TASKS),
        ]


def main() -> None:
    """Print the rows."""
    show(rows())


if __name__ == "__main__":
    main()
