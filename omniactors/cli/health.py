"""`omniactors metrics`, `health` and `doctor`: what the agents have done, how they do, what is wrong with the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from omniactors.cli.exits import ExitCode
from omniactors.cli.listing import Listing
from omniactors.cli.output import Format, FormatOption, counted, notice, print_json, safe, stdout
from omniactors.cli.session import ask_system, missing_store, store_name
from omniactors.cli.times import show_time
from omniactors.settings import read_settings
from omniactors.streams.backend import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omniactors.operations.health import AgentCounts, Health

_STYLES = {"ok": "green", "warning": "bold yellow", "error": "bold red"}


def metrics(
    topic: Annotated[str | None, typer.Option("--topic", "-t", help="Only this topic.")] = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Show what each agent has done since the store began, in all processes; counted are tries."""
    counts = ask_system(lambda omni: omni.metrics())
    if topic is not None:
        counts = {name: agents for name, agents in counts.items() if name == topic}
    if output is Format.JSON:
        print_json(counts)
    elif counts:
        _print_counts(counts)
    else:
        place = store_name() if topic is None else f"{topic}, in {store_name()}"
        notice(f"Nothing has been handled yet at {place}.")


def health(output: FormatOption = Format.TEXT) -> None:
    """Show whether the agents run, in all processes; exit code 1 when one has given up, 3 without a store."""
    state = ask_system(lambda omni: omni.health())
    if missing := missing_store(read_settings()):
        state = msgspec.structs.replace(state, store=missing)
    if output is Format.JSON:
        print_json(state)
    else:
        _print_health(state)
    if state.status not in {"ok", "idle"}:
        raise typer.Exit(ExitCode.UNAVAILABLE if state.status == "unreachable" else ExitCode.FAILED)


def doctor(output: FormatOption = Format.TEXT) -> None:
    """Check what durability and speed depend on, and say what to change; exit code 1 when something is wrong."""
    if missing := missing_store(read_settings()):
        advice = "the first publish or run makes it; elsewhere? omniactors info says how this one was chosen"
        findings = [Finding(check="store", status="warning", message=f"there is no {missing} yet", advice=advice)]
    else:
        findings = ask_system(lambda omni: omni.doctor())
    if output is Format.JSON:
        print_json(findings)
    else:
        _print_findings(findings)
    if any(finding.status == "error" for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


def _print_health(state: Health) -> None:
    console = stdout()
    style = {"ok": "green", "idle": "yellow"}.get(state.status, "bold red")
    console.print(Text.assemble((state.status, style), f"  {safe(state.store)}"))
    if state.problem:
        console.print(Text(safe(state.problem), style="red"))
    for runtime in state.runtimes:
        where = f"  watch at {safe(runtime.gateway)}" if runtime.gateway else ""
        since = show_time(runtime.started_at)
        console.print(Text(f"process {runtime.pid} on {safe(runtime.host)}, since {since}{where}"))
    for agent in state.agents:
        down = state.gave_up.get(agent)
        mark = "  paused" if agent in state.paused else ""
        what = ("runs" + mark, "green") if down is None else (f"gave up: {safe(down)}{mark}", "bold red")
        console.print(Text.assemble(f"agent {safe(agent)}  ", what))
    if state.status == "idle":
        notice("No process runs agents. Start some with: omniactors run FILE_OR_MODULE")
    elif state.gave_up:
        notice("It is tried again each minute; at once with: omniactors agent restart NAME")


def _print_counts(counts: dict[str, dict[str, AgentCounts]]) -> None:
    listing = Listing("Topic", "Agent", numbers=("Received", "Processed", "Failed", "Retried", "Time", "Average"))
    for topic, agents in counts.items():
        for agent, row in agents.items():
            failed = Text(f"{row['tasks_failed']:,}", style="bold red" if row["tasks_failed"] else "")
            listing.add(
                Text(safe(topic), style="cyan"),
                agent,
                f"{row['tasks_received']:,}",
                f"{row['tasks_processed']:,}",
                failed,
                f"{row['tasks_retried']:,}",
                _duration(row["total_processing_time"]),
                _duration(row["avg_processing_time_sec"]),
            )
    listing.print()


def _duration(seconds: float) -> str:
    """A length of time in the unit that fits it."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 600:  # noqa: PLR2004 -- ten minutes
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"  # noqa: PLR2004


def _print_findings(findings: Sequence[Finding]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        found = Text.assemble((safe(finding.check), "bold"), ": ", safe(finding.message))
        table.add_row(Text(finding.status, style=_STYLES[finding.status]), found)
        if finding.advice:
            table.add_row("", Text(safe(finding.advice), style="cyan"))
    stdout().print(table)
    _sum_up(findings)


def _sum_up(findings: Sequence[Finding]) -> None:
    errors = sum(finding.status == "error" for finding in findings)
    warnings = sum(finding.status == "warning" for finding in findings)
    if errors or warnings:
        found = [counted(number, what) for number, what in ((errors, "error"), (warnings, "warning")) if number]
        notice(", ".join(found))
    else:
        notice("all is well")
