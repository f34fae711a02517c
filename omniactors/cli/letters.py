"""Dead letters on the command line: `streams dlq` shows, `streams replay` gives back, `streams purge` deletes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypedDict

import msgspec
import typer
from rich.text import Text

from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.output import Format, FormatOption, agrees, counted, notice, one_line, print_json, safe, stdout
from omniactors.cli.session import ask_system, store_name
from omniactors.cli.times import TIME_HELP, parse_time, show_time
from omniactors.redaction import redact
from omniactors.streams.settlement import WEBHOOK_TOPIC, DeadReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omniactors import OmniActors
    from omniactors.streams.backend import DeadLetter

LABEL_WIDTH = 10

AT_ONCE = 1000
"""How many dead letters a replay or purge takes when nobody says."""

TopicOption = Annotated[str, typer.Option("--topic", "-t", help="Whose dead letters.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most, oldest first.")]
AgentOption = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Only those of this agent.")]
ReasonOption = Annotated[DeadReason | None, typer.Option("--reason", help="Only those that died of this.")]
ErrorTypeOption = Annotated[
    str | None, typer.Option("--error-type", metavar="CLASS", help="Only those of this exception, as ValueError.")
]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help=f"Only those that died then or later: {TIME_HELP}.")
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Only those that died before, written as --since.")
]
IdOption = Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="Only this one; repeatable.")]


class _Filters(TypedDict):
    """The filters as `omni.streams` takes them; None does not narrow."""

    agent: str | None
    reason: DeadReason | None
    error_type: str | None
    since: float | None
    until: float | None
    ids: list[str] | None


@dataclass(frozen=True)
class _Choice:
    """The dead letters of one topic that a command is about."""

    topic: str
    limit: int
    filters: _Filters


def dead_letters(
    topic: TopicOption,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most, newest first.")] = 10,
    agent: AgentOption = None,
    reason: ReasonOption = None,
    error_type: ErrorTypeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    ids: IdOption = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Show the newest dead letters of a topic, with the error that each died of."""
    filters = _filters(agent=agent, reason=reason, error_type=error_type, since=since, until=until, ids=ids)
    found = ask_system(lambda omni: omni.streams.dlq(topic, limit, **filters))
    letters = [_without_password(letter) for letter in found]
    if output is Format.JSON:
        print_json(letters)
    elif letters:
        for letter in letters:
            _print_letter(letter)
    else:
        notice(f"No {_such(filters)}dead letters at {topic}, in {store_name()}.")


def replay(
    topic: TopicOption,
    *,
    limit: LimitOption = AT_ONCE,
    agent: AgentOption = None,
    reason: ReasonOption = None,
    error_type: ErrorTypeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    ids: IdOption = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Give dead letters back to the agents in which they died, as if they were new."""
    filters = _filters(agent=agent, reason=reason, error_type=error_type, since=since, until=until, ids=ids)
    choice = _Choice(topic, limit, filters)
    number = ask_system(lambda omni: omni.streams.replay(topic, limit=limit, **filters))
    if output is Format.JSON:
        print_json({"topic": topic, "replayed": number})
    else:
        _tell(choice, number, "were given back to their agents" if number > 1 else "was given back to its agent")


def purge(
    topic: TopicOption,
    *,
    limit: LimitOption = AT_ONCE,
    agent: AgentOption = None,
    reason: ReasonOption = None,
    error_type: ErrorTypeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    ids: IdOption = None,
    is_sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    output: FormatOption = Format.TEXT,
) -> None:
    """Delete dead letters for good; asks first."""
    filters = _filters(agent=agent, reason=reason, error_type=error_type, since=since, until=until, ids=ids)
    choice = _Choice(topic, limit, filters)
    number = ask_system(lambda omni: _purge(omni, choice, is_sure=is_sure))
    if output is Format.JSON:
        print_json({"topic": topic, "purged": number})
    else:
        _tell(choice, number, "were deleted" if number > 1 else "was deleted")


async def _purge(omni: OmniActors, choice: _Choice, *, is_sure: bool) -> int:
    """Delete, after asking when that is wanted and there is something to ask about; raises CommandError for a no."""
    if not is_sure:
        there = len(await omni.streams.dlq(choice.topic, choice.limit, **choice.filters))
        if there and not agrees(f"Delete {counted(there, 'dead letter')} of {choice.topic} for good? [y/N] "):
            raise CommandError("nothing was deleted; --yes deletes without asking")
    return await omni.streams.purge(choice.topic, limit=choice.limit, **choice.filters)


def _filters(
    *,
    agent: str | None,
    reason: DeadReason | None,
    error_type: str | None,
    since: str | None,
    until: str | None,
    ids: list[str] | None,
) -> _Filters:
    """The filters that the options stand for; raises CommandError for a time that is none."""
    first = None if since is None else parse_time(since, "--since")
    end = None if until is None else parse_time(until, "--until")
    if first is not None and end is not None and first >= end:
        raise CommandError("--since must be before --until: nothing can lie between them", ExitCode.USAGE)
    return _Filters(agent=agent, reason=reason, error_type=error_type, since=first, until=end, ids=ids or None)


def _such(filters: _Filters) -> str:
    """The word that says that not all were meant."""
    return "such " if any(value is not None for value in filters.values()) else ""


def _tell(choice: _Choice, number: int, fate: str) -> None:
    """Say what became of how many, and that there may be more."""
    if not number:
        notice(f"No {_such(choice.filters)}dead letters at {choice.topic}.")
        return
    stdout().print(Text(f"{counted(number, 'dead letter')} of {safe(choice.topic)} {fate}."))
    if number == choice.limit:
        notice(f"There may be more: --limit is {choice.limit:,}.")


def _without_password(letter: DeadLetter) -> DeadLetter:
    """The letter as it is shown: what its event holds is the user's own, but for the password of a webhook."""
    message = letter.failed_message if isinstance(letter.failed_message, dict) else {}
    content = message.get("content")
    if letter.topic == WEBHOOK_TOPIC and isinstance(content, dict):
        url = content.get("url")
        message = {**message, "content": {**content, "url": redact(str(url))}}
    else:
        url = message.get("webhook")
        message = {**message, "webhook": redact(str(url))}
    if not isinstance(url, str) or redact(url) == url:
        return letter
    return msgspec.structs.replace(letter, failed_message=message, body=letter.body.replace(url, redact(url)))


def _print_letter(letter: DeadLetter) -> None:
    message = letter.failed_message
    content = message.get("content") if isinstance(message, dict) else letter.body
    console = stdout()
    head = f"  {show_time(letter.failed_at)}  {letter.reason}"
    console.print(Text.assemble((safe(letter.agent), "bold"), (head, "dim")))
    lines: Sequence[tuple[str, str, str]] = [
        ("error", letter.error, "red"),
        ("attempts", str(letter.attempts), ""),
        ("id", letter.id, ""),
        ("entry", letter.original_id, ""),
        ("content", one_line(content), ""),
    ]
    for label, value, style in lines:
        console.print(Text.assemble((f"  {label:<{LABEL_WIDTH}}", "dim"), (safe(value), style)))
