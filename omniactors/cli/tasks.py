"""`omniactors task`: publish an event, and read what became of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import trio
import typer

from omniactors.cli.events import EventFile, PayloadFile, parse_content, read_event
from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.output import Format, FormatOption, complain, notice, print_json, print_pretty, stdout
from omniactors.cli.session import ask_system, store_name, with_system
from omniactors.cli.times import TIME_HELP, parse_time
from omniactors.errors import StreamFull, TaskFailed
from omniactors.operations.nearness import near
from omniactors.operations.results import failure_of

if TYPE_CHECKING:
    from omniactors import OmniActors, Whereabouts
    from omniactors.operations.results import TaskState

app = typer.Typer(no_args_is_help=True, help="Publish events and read their results.")

WaitOption = Annotated[
    float | None, typer.Option("--wait", min=0.0, metavar="SECONDS", help="Wait this long for the result.")
]


TopicOption = Annotated[str | None, typer.Option("--topic", "-t", help="Where the event goes.")]
ContentOption = Annotated[
    str | None,
    typer.Option("--content", "-c", metavar="JSON_OR_TEXT", help="JSON, or plain words, which are taken as text."),
]
PayloadFileOption = Annotated[
    Path | None,
    typer.Option(
        "--payload-file",
        metavar="FILE",
        help='An event as JSON: {"topic", "payload": {"content", ...}, ...}; "-" is stdin. Options override it.',
    ),
]
TaskIdOption = Annotated[
    str | None,
    typer.Option("--task-id", metavar="ID", help="The event's id: published again to the topic, it does nothing."),
]
DelayOption = Annotated[
    float | None, typer.Option("--delay", min=0.0, metavar="SECONDS", help="Agents get it so much later.")
]
AtOption = Annotated[str | None, typer.Option("--at", metavar="TIME", help=f"Agents get it then: {TIME_HELP}.")]
RoomOption = Annotated[bool, typer.Option("--wait-for-room", help="When the stream is full, wait instead of failing.")]


@dataclass(frozen=True)
class Fate:
    """What is known of a task: its result, its error, or where it is; `hint` is why it may stay there."""

    task_id: str
    state: TaskState
    result: object = None
    failure: TaskFailed | None = None
    places: tuple[Whereabouts, ...] = ()
    hint: str = ""


@dataclass(frozen=True)
class _When:
    """When agents get an event, as `omni.publish` takes it; `for_room` waits while the stream is full."""

    delay: float | None
    at: float | None
    for_room: bool


_PENDING = ("scheduled", "queued", "running", "retrying")


@app.callback()
def group() -> None:
    """Publish events and read their results."""


@app.command()
def publish(
    *,
    topic: TopicOption = None,
    content: ContentOption = None,
    payload_file: PayloadFileOption = None,
    task_id: TaskIdOption = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Gets the result by POST.")] = None,
    reply_to: Annotated[str | None, typer.Option(metavar="TOPIC", help="Gets the result as an event.")] = None,
    correlation_id: Annotated[str | None, typer.Option(metavar="ID", help="Ties events of one flow together.")] = None,
    causation_id: Annotated[str | None, typer.Option(metavar="ID", help="The event that led to this one.")] = None,
    source: Annotated[str | None, typer.Option(metavar="NAME", help="Who publishes.")] = None,
    tenant_id: Annotated[str | None, typer.Option(metavar="ID", help="On whose behalf.")] = None,
    delay: DelayOption = None,
    at: AtOption = None,
    wait_for_room: RoomOption = False,
    wait: WaitOption = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Publish an event; prints its task id, and with --wait its result."""
    options = EventFile(
        topic=topic,
        payload=PayloadFile(
            content=msgspec.UNSET if content is None else parse_content(content), webhook=webhook, reply_to=reply_to
        ),
        task_id=task_id,
        tenant_id=tenant_id,
        correlation_id=correlation_id,
        causation_id=causation_id,
        source=source,
    )
    event = options if payload_file is None else read_event(payload_file).override(options)
    when = _when(delay, at, wait_for_room)
    fate = with_system(lambda omni: _submit(omni, event, when, wait=wait, output=output))
    if wait is not None:
        _tell(fate, output)
    elif output is Format.JSON:
        print_json({"task_id": fate.task_id})
    else:
        stdout().print(fate.task_id)


@app.command("result")
def result(
    task_id: Annotated[str, typer.Option("--task-id", help="The id that publishing printed.")],
    wait: WaitOption = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Print the result of a task; exit code 1 when there is none, or when the task failed: it says which, and where."""
    _tell(ask_system(lambda omni: _fate(omni, task_id, wait or 0.0)), output)


def _when(delay: float | None, at: str | None, for_room: bool) -> _When:
    """When agents get the event; raises CommandError."""
    if delay is not None and at is not None:
        raise CommandError("--delay and --at exclude each other: either says when agents get the event", ExitCode.USAGE)
    return _When(delay, None if at is None else parse_time(at, "--at"), for_room)


async def _submit(omni: OmniActors, event: EventFile, when: _When, *, wait: float | None, output: Format) -> Fate:
    """Publish, and wait for the result if that is wanted; raises CommandError for an event that lacks a part."""
    if event.topic is None:
        raise CommandError("an event needs a topic: give --topic, or a --payload-file that has one", ExitCode.USAGE)
    if event.payload.content is msgspec.UNSET:
        raise CommandError("an event needs content: give --content or --payload-file", ExitCode.USAGE)
    publish_it = partial(
        omni.publish,
        event.topic,
        event.payload.content,
        task_id=event.task_id,
        webhook=event.payload.webhook,
        reply_to=event.payload.reply_to,
        correlation_id=event.correlation_id,
        causation_id=event.causation_id,
        source=event.source,
        tenant_id=event.tenant_id,
        delay=when.delay,
        at=when.at,
    )
    try:
        task_id = await publish_it()
    except StreamFull as full:
        if not when.for_room:
            raise
        notice(f"{full}; waiting for room")
        task_id = await publish_it(wait_for_room=True)
    if wait is None:
        return Fate(task_id, "queued")
    hint = await _unread(omni, event.topic)
    if output is Format.TEXT:
        notice(f"task {task_id}")
    if hint:
        notice(hint)
    return replace(await _fate(omni, task_id, wait), hint=hint)


async def _unread(omni: OmniActors, topic: str) -> str:
    """That nobody reads a topic now, and which one was perhaps meant; empty when somebody does."""
    runtimes = await omni.runtimes()
    served = {group[0] for runtime in runtimes for group in runtime.groups or ()}
    if topic in served or any(runtime.groups is None for runtime in runtimes):  # an older version does not say
        return ""
    known = {agent.topic for agent in await omni.agents.list()}
    if topic in known:
        return f"no running process reads {topic} at the moment"
    return f"nobody reads {topic}, and no agent ever has{near(topic, known | served)}"


async def _fate(omni: OmniActors, task_id: str, seconds: float) -> Fate:
    """What became of the task, after at most `seconds`."""
    for record in sorted(await omni.results.of_task(task_id), key=lambda record: record.status != "success"):
        if record.status == "success":
            return Fate(task_id, "success", record.result)
        return Fate(task_id, "failed", failure=failure_of(record))
    try:
        with trio.move_on_after(seconds):
            return Fate(task_id, "success", await omni.wait_result(task_id))
    except TaskFailed as failure:
        return Fate(task_id, "failed", failure=failure)
    status = await omni.results.status(task_id)
    if status.state in {"success", "failed"}:  # it came while it was looked for
        return await _fate(omni, task_id, 0.0)
    return Fate(task_id, status.state, places=status.places)


def _tell(fate: Fate, output: Format) -> None:
    """Print what became of the task; raises typer.Exit unless it succeeded."""
    if output is Format.JSON:
        print_json(_document(fate))
    elif fate.state == "success":
        print_pretty(fate.result)
    elif fate.failure is not None:
        complain(str(fate.failure))
    else:
        complain(_missing(fate))
    if fate.state != "success":
        raise typer.Exit(ExitCode.FAILED)


def _missing(fate: Fate) -> str:
    """Why there is no result."""
    head = f"there is no result for task {fate.task_id}"
    match fate.state:
        case "unknown":
            return f"{head}: it is unknown in {store_name()}"
        case "expired":
            return f"{head}: it is expired"
    where = ", ".join(
        f"{place.state} at {place.topic}" + (f" for {place.agent}" if place.agent else "") for place in fate.places
    )
    return f"{head} yet, it is pending: {where}"


def _document(fate: Fate) -> dict[str, object]:
    status = "pending" if fate.state in _PENDING else fate.state
    document: dict[str, object] = {
        "task_id": fate.task_id,
        "status": status,
        "result": fate.result,
    }
    if status not in {"success", "failed"}:
        document |= {"state": fate.state, "places": fate.places}
    if fate.hint:
        document["hint"] = fate.hint
    if fate.failure is not None:
        document |= {
            "error": fate.failure.error,
            "error_type": fate.failure.error_type,
            "agent": fate.failure.agent,
            "attempts": fate.failure.attempts,
        }
    return document
