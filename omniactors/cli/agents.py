"""`omniactors agent`: the agents that are registered in the store: what became of them, pauses, restarts, deletion."""

from __future__ import annotations

import sys
from collections import defaultdict
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.text import Text
from rich.tree import Tree

from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.listing import Listing
from omniactors.cli.output import Format, FormatOption, agrees, counted, notice, print_json, safe, stdout
from omniactors.cli.session import ask_system, store_name
from omniactors.errors import AgentError
from omniactors.streams.backend import AgentRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omniactors import OmniActors

app = typer.Typer(no_args_is_help=True, help="The registered agents.")


NameArgument = Annotated[str | None, typer.Argument(metavar="NAME", help="The agent, as agent list shows it.")]
NameOption = Annotated[str | None, typer.Option("--name", "-n", metavar="NAME", help="The same, as an option.")]


DeadLettersOption = Annotated[bool, typer.Option("--dead-letters", help="Delete the dead letters too.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Also while a process uses it, which may bring it back.")]
SureOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first, at a terminal.")]


class _Listed(AgentRecord, frozen=True, kw_only=True):
    """A registered agent, whether it is paused, and why it gave up in some process, None when it did not."""

    paused: bool
    gave_up: str | None


class Layout(StrEnum):
    """How agents are shown."""

    TREE = "tree"
    TABLE = "table"
    COMPACT = "compact"
    JSON = "json"


@app.callback()
def group() -> None:
    """The registered agents."""


@app.command("list")
def list_agents(
    layout: Annotated[Layout, typer.Option("--format", "-f", help="How to show them.")] = Layout.TREE,
) -> None:
    """List the registered agents by topic; exit code 1 when one has given up."""
    agents = ask_system(_read)
    if not agents and layout is not Layout.JSON:
        notice(f"No agents are registered in {store_name()}. Start some with: omniactors run FILE_OR_MODULE")
        return
    match layout:
        case Layout.JSON:
            print_json(_by_topic(agents))
        case Layout.TREE:
            _print_tree(agents)
        case Layout.TABLE:
            _print_table(agents)
        case Layout.COMPACT:
            for agent in agents:
                stdout().print(Text.assemble(f"{safe(agent.topic)}  ", _name(agent)))
    if any(agent.gave_up is not None for agent in agents):
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def pause(argument: NameArgument = None, name: NameOption = None, output: FormatOption = Format.TEXT) -> None:
    """Have no process take events for an agent until it is resumed, restarts included; they wait in its streams."""
    chosen = _chosen(argument, name)

    async def work(omni: OmniActors) -> None:
        with _as_command_error():
            await omni.agents.pause(chosen)

    ask_system(work)
    if output is Format.JSON:
        print_json({"agent": chosen, "paused": True})
    else:
        notice(f"{chosen} is paused; go on with: omniactors agent resume {chosen}")


@app.command()
def resume(argument: NameArgument = None, name: NameOption = None, output: FormatOption = Format.TEXT) -> None:
    """End the pause of an agent."""
    chosen = _chosen(argument, name)

    async def work(omni: OmniActors) -> bool:
        was_paused = chosen in await omni.agents.paused()
        await omni.agents.resume(chosen)
        return was_paused

    was_paused = ask_system(work)
    if output is Format.JSON:
        print_json({"agent": chosen, "paused": False})
    else:
        notice(f"{chosen} takes events again" if was_paused else f"{chosen} was not paused")


@app.command()
def restart(argument: NameArgument = None, name: NameOption = None, output: FormatOption = Format.TEXT) -> None:
    """Have an agent that gave up tried again at once, in every process in which it did."""
    chosen = _chosen(argument, name)

    async def work(omni: OmniActors) -> int:
        with _as_command_error():
            return await omni.agents.restart(chosen)

    number = ask_system(work)
    if output is Format.JSON:
        print_json({"agent": chosen, "restarted_in": number})
    elif number:
        notice(f"{chosen} is tried again in {counted(number, 'process')}; see how it does with: omniactors health")
    else:
        notice(f"{chosen} has given up nowhere, so there is nothing to do")


@app.command()
def delete(
    argument: NameArgument = None,
    name: NameOption = None,
    *,
    dead_letters: DeadLettersOption = False,
    force: ForceOption = False,
    is_sure: SureOption = False,
    output: FormatOption = Format.TEXT,
) -> None:
    """Forget an agent that was renamed or removed: its groups, registration, pause and counters."""
    chosen = _chosen(argument, name)
    _ask(f"Delete agent {chosen}, with what waits for it alone? [y/N] ", is_sure=is_sure)

    async def work(omni: OmniActors) -> list[str]:
        streams = await omni.streams.list()
        with _as_command_error():
            await omni.agents.delete(chosen, dead_letters=dead_letters, force=force)
        theirs = [(stream.topic, each.dead) for stream in streams for each in stream.groups if each.agent == chosen]
        return [topic for topic, dead in theirs if dead and not dead_letters]

    kept = ask_system(work)
    if output is Format.JSON:
        print_json({"agent": chosen, "deleted": True})
        return
    notice(f"{chosen} is deleted")
    for topic in kept:
        _say_kept(topic)


@app.command("delete-topic")
def delete_topic(
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="The topic, as streams list shows it.")] = None,
    option: Annotated[str | None, typer.Option("--topic", "-t", metavar="TOPIC", help="The same.")] = None,
    *,
    dead_letters: DeadLettersOption = False,
    force: ForceOption = False,
    is_sure: SureOption = False,
    output: FormatOption = Format.TEXT,
) -> None:
    """Forget a topic: all its events, read or not, and the agents' places on it."""
    chosen = _chosen(topic, option, "one topic; omniactors streams list shows them")
    _ask(f"Delete topic {chosen}, with all its events? [y/N] ", is_sure=is_sure)

    async def work(omni: OmniActors) -> tuple[int, bool]:
        with _as_command_error():
            number = await omni.agents.delete_topic(chosen, dead_letters=dead_letters, force=force)
        return number, bool(await omni.streams.dlq(chosen, limit=1))

    number, has_letters = ask_system(work)
    if output is Format.JSON:
        print_json({"topic": chosen, "deleted": number})
        return
    notice(f"{chosen} is deleted, with {counted(number, 'event')}")
    if has_letters:
        _say_kept(chosen)


def _say_kept(topic: str) -> None:
    notice(f"Its dead letters at {topic} are kept; delete them with: omniactors streams purge --topic {topic}")


def _ask(question: str, *, is_sure: bool) -> None:
    """Ask whoever sits at a terminal; raises CommandError for a no."""
    if not is_sure and sys.stdin is not None and sys.stdin.isatty() and not agrees(question):
        raise CommandError("nothing was deleted; --yes deletes without asking")


@contextmanager
def _as_command_error() -> Iterator[None]:
    """What is refused is no misuse of the command line."""
    try:
        yield
    except AgentError as error:
        raise CommandError(str(error)) from error


def _chosen(
    argument: str | None, option: str | None, what: str = "the name of one agent; omniactors agent list shows them"
) -> str:
    """The agent or topic that is meant, which may be given either way; raises CommandError."""
    match argument, option:
        case str(name), None:
            return name
        case None, str(name):
            return name
    raise CommandError(f"give {what}", ExitCode.USAGE)


async def _read(omni: OmniActors) -> list[_Listed]:
    """The registry, with what is paused and what gave up."""
    paused = await omni.agents.paused()
    down = {agent: reason for runtime in await omni.runtimes() for agent, reason in runtime.gave_up.items()}
    return [
        _Listed(**msgspec.structs.asdict(agent), paused=agent.name in paused, gave_up=down.get(agent.name))
        for agent in await omni.agents.list()
    ]


def _by_topic(agents: Sequence[_Listed]) -> dict[str, list[_Listed]]:
    topics: defaultdict[str, list[_Listed]] = defaultdict(list)
    for agent in agents:
        topics[agent.topic].append(agent)
    return dict(topics)


def _print_tree(agents: Sequence[_Listed]) -> None:
    for topic, members in _by_topic(agents).items():
        tree = Tree(Text(safe(topic), style="bold cyan"), guide_style="dim")
        for agent in members:
            branch = tree.add(_name(agent))
            for label, value in _details(agent):
                branch.add(Text.assemble((f"{label} ", "dim"), safe(value)))
        stdout().print(tree)


def _name(agent: _Listed) -> Text:
    pause_mark = ("  paused", "bold yellow") if agent.paused else ""
    down_mark = "" if agent.gave_up is None else (f"  gave up: {safe(agent.gave_up)}", "bold red")
    return Text.assemble((safe(agent.name), "green"), pause_mark, down_mark)


def _details(agent: _Listed) -> list[tuple[str, str]]:
    details = [
        ("description", agent.description),
        ("callback", agent.callback),
        ("tools", ", ".join(agent.tools)),
        ("config", ", ".join(f"{key}={value}" for key, value in agent.config.items() if value is not None)),
    ]
    return [(label, value) for label, value in details if value]


def _print_table(agents: Sequence[_Listed]) -> None:
    listing = Listing("Topic", "Agent", "Callback", "Tools", "Description")
    for agent in agents:
        listing.add(agent.topic, _name(agent), agent.callback, ", ".join(agent.tools), agent.description)
    listing.print()
