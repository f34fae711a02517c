"""`omniactors run`: run the agents of a module until a signal stops them, in order or at once."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated

import trio
import typer

import omniactors
from omniactors.cli.crew import run_workers
from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.loading import Program, load
from omniactors.cli.logs import show_logs
from omniactors.cli.output import Format, FormatOption, counted, print_json, say
from omniactors.cli.process import Command
from omniactors.cli.serving import Service, Stop, serve
from omniactors.cli.worker import serve_parent
from omniactors.settings import Settings, parse_address, parse_hosts, read_settings

if TYPE_CHECKING:
    from omniactors import OmniActors

ANY_LOCAL_PORT = "127.0.0.1:0"
"""Where the gateway listens when nobody says: this machine alone reaches it, and `watch` finds it in the store."""

MAX_WORKERS = 256
"""Far more than one machine's processors; a number beyond is a slip of the hand."""


def run(
    target: Annotated[str, typer.Argument(metavar="FILE_OR_MODULE", help="Where the agents are defined.")],
    *,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where watchers connect; default: a free local port.")
    ] = None,
    token: Annotated[str | None, typer.Option(metavar="T", help="What watchers must present.")] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name under which the gateway is reached, as behind a proxy; repeatable."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", "-w", metavar="N", min=1, max=MAX_WORKERS, help="So many processes that share the work."
        ),
    ] = 1,
    worker: Annotated[int, typer.Option(hidden=True, min=1, help="Which of several workers this is.")] = 1,
    lifeline: Annotated[int | None, typer.Option(hidden=True, help="The worker's socket to its parent.")] = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Run the agents of a file or module until Ctrl-C; a second Ctrl-C stops at once.

    With --workers a process that dies is started again, and SIGHUP replaces all of them one after another.
    """
    if listen is not None:
        parse_address(listen, "--listen")
    hosts = parse_hosts(allowed_host, "--allowed-host") if allowed_host else None
    settings = read_settings()
    if workers > 1:
        is_forced = trio.run(
            run_workers, Command(target, listen=listen, token=token, allowed_hosts=hosts or ()), workers, output
        )
    else:
        program = load(target)
        omni = _system(program, settings, target)
        if listen is None and (worker > 1 or omni.settings.listen is None):
            listen = ANY_LOCAL_PORT
        service = Service(omni, program.origin, listen, token, hosts)
        if lifeline is None:
            is_forced = trio.run(_serve, service, output)
        else:
            is_forced = trio.run(serve_parent, service, worker, lifeline)
    if is_forced:
        raise typer.Exit(ExitCode.INTERRUPTED)


def _system(program: Program, settings: Settings, target: str) -> OmniActors:
    """The module's own system, or a new one with its agents; raises CommandError when it has none."""
    if program.system is None:
        omni = omniactors.OmniActors(settings=settings)
        for agent in program.agents:
            omni.add(agent)
        return omni
    if not program.system.agent_names():
        raise CommandError(f"the OmniActors in {target} has no agents: add them where it is made", ExitCode.USAGE)
    return program.system


async def _serve(service: Service, output: Format) -> bool:
    """Run until stopped by a signal; True when a second one cut the stop short."""
    stop = Stop(service.omni, has_parent=False)
    logs = show_logs()

    async def announce(gateway: str | None) -> None:
        logs.is_ready = True
        _announce(service, gateway, output)

    await serve(service, stop, tell=say, ready=announce, beside=partial(stop.report, say, "stopping"))
    say("stopped at once; unfinished tasks are delivered again" if stop.is_forced else "stopped")
    return stop.is_forced


def _announce(service: Service, gateway: str | None, output: Format) -> None:
    """Say what runs and where it can be watched: on stderr for people, as a document on stdout for scripts."""
    names = sorted(service.omni.agent_names())
    say(f"{counted(len(names), 'agent')} of {service.origin}: {', '.join(names)}")
    say(f"watch at {gateway}" if gateway else "no gateway")
    if output is Format.JSON:
        store = str(service.omni.settings.backend)
        print_json({"pid": os.getpid(), "store": store, "agents": names, "gateway": gateway})
