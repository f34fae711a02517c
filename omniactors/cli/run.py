"""`omniactors run`: run the agents of a module until a signal stops them, in order or at once."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated

import trio
import typer

import omniactors
from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.loading import Program, load
from omniactors.cli.logs import show_logs
from omniactors.cli.output import Format, FormatOption, notice, print_json
from omniactors.settings import Settings, parse_address, read_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from omniactors import OmniActors

ANY_LOCAL_PORT = "127.0.0.1:0"
"""Where the gateway listens when nobody says: this machine alone reaches it, and `watch` finds it in the store."""

REPORT_EVERY = 2.0
"""Seconds between two lines that say what an orderly stop waits for."""


def run(
    target: Annotated[str, typer.Argument(metavar="FILE_OR_MODULE", help="Where the agents are defined.")],
    *,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where watchers connect; default: a free local port.")
    ] = None,
    token: Annotated[str | None, typer.Option(metavar="T", help="What watchers must present.")] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Not built yet.")] = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Run the agents of a file or module until Ctrl-C; a second Ctrl-C stops at once."""
    if workers is not None:
        raise CommandError(
            "--workers is not built yet: start this command several times, the runtimes share the work",
            ExitCode.USAGE,
        )
    if listen is not None:
        parse_address(listen, "--listen")
    settings = read_settings()
    program = load(target)
    omni = _system(program, settings)
    if not omni.agent_names():
        raise CommandError(f"the OmniActors in {target} has no agents: add them where it is made", ExitCode.USAGE)
    if listen is None and omni.settings.listen is None:
        listen = ANY_LOCAL_PORT
    if trio.run(partial(_serve, omni, program, listen=listen, token=token, output=output)):
        raise typer.Exit(ExitCode.INTERRUPTED)


def _system(program: Program, settings: Settings) -> OmniActors:
    """The module's own system, or a new one with its agents."""
    if program.system is not None:
        return program.system
    omni = omniactors.OmniActors(settings=settings)
    for agent in program.agents:
        omni.add(agent)
    return omni


@dataclass
class _Stopping:
    """How far a stop has come: `scope` ends the orderly run, `forced` says that there was no time for it."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    forced: bool = False


async def _serve(omni: OmniActors, program: Program, *, listen: str | None, token: str | None, output: Format) -> bool:
    """Run until stopped by a signal; True when a second one cut the stop short."""
    stopping = _Stopping()
    start = show_logs()
    # The receiver surrounds everything: a signal at any moment stops in order.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, omni, stopping)
            try:
                with stopping.scope:
                    async with trio.open_nursery() as running:
                        gateway = await running.start(partial(omni.run, listen=listen, token=token))
                        start.is_ready = True
                        _announce(omni, program, gateway, output)
            finally:
                with trio.CancelScope(shield=True):
                    await omni.shutdown()
            nursery.cancel_scope.cancel()
    _say("stopped at once; unfinished tasks are delivered again" if stopping.forced else "stopped")
    return stopping.forced


async def _obey(signals: AsyncIterator[int], omni: OmniActors, stopping: _Stopping) -> None:
    """Stop in order at the first signal and at once at the second; says what is waited for in between."""
    async with trio.open_nursery() as nursery:
        async for _ in signals:
            if not stopping.scope.cancel_called:
                stopping.scope.cancel()
                nursery.start_soon(_report, omni)
            elif not stopping.forced:
                stopping.forced = True
                omni.stop_now()


async def _report(omni: OmniActors) -> None:
    """Say what an orderly stop waits for, until cancelled."""
    while True:
        _say(_waiting_line(omni.running_tasks()))
        await trio.sleep(REPORT_EVERY)


def _waiting_line(running: Mapping[str, int]) -> str:
    """One line that says what an orderly stop waits for."""
    busy = {name: count for name, count in sorted(running.items()) if count}
    if not busy:
        return "stopping"
    total = sum(busy.values())
    tasks = "1 running task" if total == 1 else f"{total} running tasks"
    names = ", ".join(f"{name} {count}" for name, count in busy.items())
    return f"stopping: waiting for {tasks} ({names}); Ctrl-C again stops at once"


def _announce(omni: OmniActors, program: Program, gateway: str | None, output: Format) -> None:
    """Say what runs and where it can be watched: on stderr for people, as a document on stdout for scripts."""
    names = sorted(omni.agent_names())
    _say(f"{len(names)} {'agent' if len(names) == 1 else 'agents'} of {program.origin}: {', '.join(names)}")
    _say(f"watch at {gateway}" if gateway else "no gateway")
    if output is Format.JSON:
        print_json({"pid": os.getpid(), "store": str(omni.settings.backend), "agents": names, "gateway": gateway})


def _say(message: str) -> None:
    """A notice that is told apart from what the agents print, as the system's own line about the store is."""
    notice(f"omniactors: {message}")
