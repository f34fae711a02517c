"""What the programs of the anchors share: the command line, and how a rate is printed."""

from __future__ import annotations

import argparse
import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def main(
    pipeline: Callable[[str, int], Awaitable[float]],
    publish: Callable[[str, int, int], Awaitable[float]],
) -> None:
    """Do the work that the command line names, and print tasks per second."""
    logging.disable(logging.CRITICAL)  # a line a task would be measured instead of the task
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=("pipeline", "publish"))
    parser.add_argument("url")
    parser.add_argument("tasks", type=int)
    parser.add_argument("publishers", type=int)
    args = parser.parse_args()
    if args.work == "pipeline":
        print(asyncio.run(_awaited(pipeline(args.url, args.tasks))))
    else:
        print(asyncio.run(_awaited(publish(args.url, args.publishers, args.tasks))))


async def _awaited(rate: Awaitable[float]) -> float:
    return await rate


async def spread(publishers: int, tasks: int, publish: Callable[[int], Awaitable[object]]) -> None:
    """Publish 0, 1, ... `tasks` - 1 from so many asyncio tasks, each one waiting for its own."""

    async def some(first: int) -> None:
        for number in range(first, tasks, publishers):
            await publish(number)

    async with asyncio.TaskGroup() as group:
        for first in range(publishers):
            group.create_task(some(first))
