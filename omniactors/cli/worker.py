"""A worker: one of several runtimes that a parent process started, and that ends when the parent does."""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import trio

from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.lifeline import Ready, WorkerEnd, longest_stop
from omniactors.cli.logs import show_logs
from omniactors.cli.output import say
from omniactors.cli.serving import Service, Stop, serve
from omniactors.settings import MemoryUrl

if TYPE_CHECKING:
    from collections.abc import Callable


async def serve_parent(service: Service, number: int, lifeline: int) -> bool:
    """Run as worker `number` until the parent stops it or is gone; True when there was no time for an orderly stop.

    Raises CommandError for a store that no other process sees.
    """
    settings = service.omni.settings
    if isinstance(settings.backend, MemoryUrl):
        raise CommandError(
            f"memory:// (from {settings.chosen_by}) is a store inside one process, which workers cannot share: "
            "use sqlite:///FILE or redis://HOST, or leave --workers out",
            ExitCode.USAGE,
        )
    try:
        parent = WorkerEnd(lifeline)
    except OSError as error:
        raise CommandError(f"--lifeline is for workers alone: {error.strerror}", ExitCode.USAGE) from error
    parent.guard(longest_stop(settings.grace))
    logs = show_logs(f"worker {number}: ")
    stop = Stop(service.omni, has_parent=True)
    chosen: list[str] = []

    def say_who(line: str) -> None:
        say(f"worker {number}: {line}")

    async def announce(gateway: str | None) -> None:
        logs.is_ready = True
        await parent.say_ready(_ready(service, chosen[0], gateway))

    with closing(parent):
        await serve(service, stop, tell=chosen.append, ready=announce, beside=partial(_stand_by, stop, parent, say_who))
    return stop.is_forced


def _ready(service: Service, chosen: str, gateway: str | None) -> Ready:
    return Ready(
        pid=os.getpid(),
        origin=service.origin,
        store=str(service.omni.settings.backend),
        settings=chosen,
        agents=sorted(service.omni.agent_names()),
        gateway=gateway,
        grace=service.omni.settings.grace,
    )


async def _stand_by(stop: Stop, parent: WorkerEnd, say_who: Callable[[str], None]) -> None:
    """Do as the parent says, and stop in order when it is gone."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop.report, say_who, None)
        async for _ in parent.hurries():
            stop.at_once()
        say_who("the parent process is gone, stopping")
        stop.has_parent = False
        stop.in_order()
