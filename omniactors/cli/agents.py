"""`omniactors agent`: the agents that are registered in the store."""

from __future__ import annotations

from collections import defaultdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from omniactors.cli.output import notice, print_json, safe, stdout
from omniactors.cli.session import with_system

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omniactors.streams.backend import AgentRecord

app = typer.Typer(no_args_is_help=True, help="The registered agents.")


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
    agents = with_system(lambda omni: omni.agents.list())
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
                stdout().print(Text(f"{safe(agent.topic)}  {safe(agent.name)}"))


def _by_topic(agents: Sequence[AgentRecord]) -> dict[str, list[AgentRecord]]:
    topics: defaultdict[str, list[AgentRecord]] = defaultdict(list)
    for agent in agents:
        topics[agent.topic].append(agent)
    return dict(topics)


def _print_tree(agents: Sequence[AgentRecord]) -> None:
    for topic, members in _by_topic(agents).items():
        tree = Tree(Text(safe(topic), style="bold cyan"), guide_style="dim")
        for agent in members:
            branch = tree.add(Text(safe(agent.name), style="green"))
            for label, value in _details(agent):
                branch.add(Text.assemble((f"{label} ", "dim"), safe(value)))
        stdout().print(tree)


def _details(agent: AgentRecord) -> list[tuple[str, str]]:
    details = [
        ("description", agent.description),
        ("callback", agent.callback),
        ("tools", ", ".join(agent.tools)),
        ("config", ", ".join(f"{key}={value}" for key, value in agent.config.items() if value is not None)),
    ]
    return [(label, value) for label, value in details if value]


def _print_table(agents: Sequence[AgentRecord]) -> None:
    table = Table("Topic", "Agent", "Callback", "Tools", "Description", box=None, header_style="dim", pad_edge=False)
    for agent in agents:
        cells = (agent.topic, agent.name, agent.callback, ", ".join(agent.tools), agent.description)
        table.add_row(*(Text(safe(cell)) for cell in cells))
    stdout().print(table)
