"""`omniactors agent`: the agents that are registered in the store, and their pauses."""

from __future__ import annotations

from collections import defaultdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.text import Text
from rich.tree import Tree

from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.listing import Listing
from omniactors.cli.output import Format, FormatOption, notice, print_json, safe, stdout
from omniactors.cli.session import with_system
from omniactors.errors import AgentError
from omniactors.streams.backend import AgentRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omniactors import OmniActors

app = typer.Typer(no_args_is_help=True, help="The registered agents.")


NameArgument = Annotated[str | None, typer.Argument(metavar="NAME", help="The agent, as agent list shows it.")]
NameOption = Annotated[str | None, typer.Option("--name", "-n", metavar="NAME", help="The same, as an option.")]


class _Listed(AgentRecord, frozen=True, kw_only=True):
    """A registered agent, and whether it is paused."""

    paused: bool


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
    """List the registered agents by topic."""
    agents = with_system(_read)
    if layout is Layout.JSON:
        print_json(_by_topic(agents))
        return
    if not agents:
        notice("No agents are registered. Start some with: omniactors run FILE_OR_MODULE")
        return
    match layout:
        case Layout.TREE:
            _print_tree(agents)
        case Layout.TABLE:
            _print_table(agents)
        case Layout.COMPACT:
            for agent in agents:
                stdout().print(Text.assemble(f"{safe(agent.topic)}  ", _name(agent)))


@app.command()
def pause(argument: NameArgument = None, name: NameOption = None, output: FormatOption = Format.TEXT) -> None:
    """Have no process take events for an agent until it is resumed, restarts included; they wait in its streams."""
    chosen = _chosen(argument, name)

    async def work(omni: OmniActors) -> None:
        try:
            await omni.agents.pause(chosen)
        except AgentError as error:
            raise CommandError(str(error)) from error

    with_system(work)
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

    was_paused = with_system(work)
    if output is Format.JSON:
        print_json({"agent": chosen, "paused": False})
    else:
        notice(f"{chosen} takes events again" if was_paused else f"{chosen} was not paused")


def _chosen(argument: str | None, option: str | None) -> str:
    """The agent that is meant, which may be given either way; raises CommandError."""
    match argument, option:
        case str(name), None:
            return name
        case None, str(name):
            return name
    raise CommandError("give the name of one agent; omniactors agent list shows them", ExitCode.USAGE)


async def _read(omni: OmniActors) -> list[_Listed]:
    """The registry, with what is paused."""
    paused = await omni.agents.paused()
    return [_Listed(**msgspec.structs.asdict(agent), paused=agent.name in paused) for agent in await omni.agents.list()]


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
    return Text.assemble((safe(agent.name), "green"), pause_mark)


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
