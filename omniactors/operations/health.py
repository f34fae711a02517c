"""How a system does: what its agents have done so far, and what is wrong with its store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, TypedDict

import msgspec

from omniactors.errors import BackendError
from omniactors.operations.nearness import near
from omniactors.streams.backend import Finding, RuntimeRecord
from omniactors.streams.envelope import INTERNAL_PREFIX

if TYPE_CHECKING:
    from omniactors.streams.backend import Backend, GroupInfo, StreamInfo

NEARLY_FULL = 0.8
"""The share of its limit from which on a stream is worth a warning."""


UNSERVED_AFTER = 3600.0
"""Seconds after which an agent that nobody runs is named although nothing waits for it: what is published will."""


class AgentCounts(TypedDict):
    """What an agent has done on one topic, over all processes and restarts; the names are OmniDaemon's.

    Counted are tries: received are those that ended, processed those that succeeded, failed those
    that did not, and retried those of them that were to be tried again. Times are in seconds, those
    of failed tries included.
    """

    tasks_received: int
    tasks_processed: int
    tasks_failed: int
    tasks_retried: int
    total_processing_time: float
    avg_processing_time_sec: float


async def read_metrics(backend: Backend) -> dict[str, dict[str, AgentCounts]]:
    """The counts by topic and agent; the runtime's own topics are left out."""
    counts: dict[str, dict[str, AgentCounts]] = {}
    for row in await backend.metrics():
        if row.topic.startswith(INTERNAL_PREFIX):
            continue
        received = row.completed + row.retried + row.dead
        counts.setdefault(row.topic, {})[row.agent] = AgentCounts(
            tasks_received=received,
            tasks_processed=row.completed,
            tasks_failed=row.retried + row.dead,
            tasks_retried=row.retried,
            total_processing_time=round(row.seconds, 3),
            avg_processing_time_sec=round(row.seconds / received, 6) if received else 0.0,
        )
    return counts


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How all processes on one store do together.

    `status` is "ok"; "failing" while an agent or a gateway has given up somewhere; "idle" when no
    process runs any agent; "unreachable" when the store cannot be used. `problem` says why it cannot, or
    which gateway is down and why. `agents` are those that run somewhere or gave up there, `gave_up`
    has the latter with the reason, `paused` those that are paused.
    """

    status: Literal["ok", "failing", "idle", "unreachable"]
    store: str
    runtimes: tuple[RuntimeRecord, ...] = ()
    agents: tuple[str, ...] = ()
    gave_up: dict[str, str] = {}
    paused: tuple[str, ...] = ()
    problem: str = ""


async def read_health(backend: Backend) -> Health:
    """How all processes do. Never raises BackendError."""
    try:
        runtimes, paused = await backend.runtimes(), await backend.paused()
    except BackendError as error:
        return Health(status="unreachable", store=backend.location, problem=str(error))
    down = _gateways_down(runtimes)
    gave_up = {agent: reason for runtime in runtimes for agent, reason in runtime.gave_up.items()}
    served = {
        agent for runtime in runtimes for topic, agent in runtime.groups or () if not topic.startswith(INTERNAL_PREFIX)
    }
    return Health(
        status="failing" if gave_up or down else "ok" if runtimes else "idle",
        store=backend.location,
        runtimes=tuple(runtimes),
        agents=tuple(sorted(served | gave_up.keys())),
        gave_up=gave_up,
        paused=tuple(sorted(paused)),
        problem=f"the gateway is down {down}" if down else "",
    )


def _gateways_down(runtimes: list[RuntimeRecord]) -> str:
    """Where a gateway is down, and why; empty when none is."""
    return "; ".join(
        f"in process {runtime.pid} on {runtime.host} ({runtime.gateway_problem})"
        for runtime in runtimes
        if runtime.gateway_problem is not None
    )


async def examine(backend: Backend, *, stream_limit: int) -> list[Finding]:
    """What the store finds about itself, and what its streams and agents show. Never raises BackendError."""
    findings = await backend.diagnose()
    if findings and findings[0].status == "error":
        return findings
    try:
        paused, streams, runtimes = await backend.paused(), await backend.streams(), await backend.runtimes()
    except BackendError as error:
        return [*findings, Finding(check="streams", status="error", message=str(error))]
    return [
        *findings,
        _about_outages(runtimes),
        _about_gateways(runtimes),
        _about_pauses(paused),
        _about_readers(streams, runtimes, time.time()),
        _about_room(streams, stream_limit),
        _about_dead_letters(streams),
    ]


def _about_outages(runtimes: list[RuntimeRecord]) -> Finding:
    found = [
        f"{agent} in process {runtime.pid} on {runtime.host} ({reason})"
        for runtime in runtimes
        for agent, reason in runtime.gave_up.items()
    ]
    if not found:
        return Finding(check="agents that gave up", status="ok", message="no agent has given up")
    return Finding(
        check="agents that gave up",
        status="error",
        message="; ".join(found),
        advice="put right what it says; it is tried again each minute, at once with: omniactors agent restart NAME",
    )


def _about_gateways(runtimes: list[RuntimeRecord]) -> Finding:
    down = _gateways_down(runtimes)
    if not down:
        return Finding(check="gateway", status="ok", message="no gateway is down")
    return Finding(
        check="gateway",
        status="error",
        message=f"it is down {down}; work goes on, and nobody can watch",
        advice="put right what it says: a gateway that is down is tried again each minute",
    )


def _about_readers(streams: list[StreamInfo], runtimes: list[RuntimeRecord], now: float) -> Finding:
    """Groups that no live process serves, and that keep entries or were left long ago; topics without any group."""
    served = {group for runtime in runtimes for group in runtime.groups or ()}
    is_known = all(runtime.groups is not None for runtime in runtimes)
    found = []
    for stream in streams:
        if stream.topic.startswith(INTERNAL_PREFIX):
            continue
        if not stream.groups and stream.length + stream.scheduled:
            hint = near(stream.topic, {topic for topic, _ in served})
            found.append(f"nobody reads {stream.topic}, which holds {_events(stream.length + stream.scheduled)}{hint}")
        for group in stream.groups:
            if is_known and (stream.topic, group.agent) not in served and _is_left(group, now):
                kept = group.waiting + group.pending + group.delayed
                since = _since(group.served_at, now)
                place = f"{group.agent} on {stream.topic}"
                found.append(f"no live process serves {place} ({since}; {_events(kept)} waiting)")
    if not found:
        return Finding(check="unserved agents", status="ok", message="no agent that nobody runs holds events back")
    return Finding(
        check="unserved agents",
        status="warning",
        message="; ".join(found),
        advice="start it again; if it was renamed or removed: omniactors agent delete NAME, agent delete-topic TOPIC",
    )


def _is_left(group: GroupInfo, now: float) -> bool:
    has_work = bool(group.waiting + group.pending + group.delayed)
    return has_work or group.served_at is None or now - group.served_at >= UNSERVED_AFTER


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count:,} events"


def _since(served_at: float | None, now: float) -> str:
    if served_at is None:
        return "never served"
    seconds = max(now - served_at, 0.0)
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"not for {count:,} {unit}" + ("s" if count > 1 else "")
    return f"not for {seconds:.0f} seconds"


def _about_pauses(paused: frozenset[str]) -> Finding:
    if not paused:
        return Finding(check="paused agents", status="ok", message="no agent is paused")
    return Finding(
        check="paused agents",
        status="warning",
        message=f"paused: {', '.join(sorted(paused))}",
        advice="their streams fill until they are resumed: omniactors agent resume --name NAME",
    )


def _about_room(streams: list[StreamInfo], limit: int) -> Finding:
    full = [stream for stream in streams if stream.length + stream.scheduled >= NEARLY_FULL * limit]
    if not full:
        return Finding(check="room in the streams", status="ok", message=f"no stream comes near {limit:,} events")
    counts = ", ".join(f"{stream.topic} has {stream.length + stream.scheduled:,}" for stream in full)
    return Finding(
        check="room in the streams",
        status="warning",
        message=f"of {limit:,} events that a stream may hold {counts}",
        advice="see whether all agents of these topics run; a stream that is full refuses what is published",
    )


def _about_dead_letters(streams: list[StreamInfo]) -> Finding:
    dead = {stream.topic: sum(group.dead for group in stream.groups) for stream in streams}
    found = [f"{topic} has {count:,}" for topic, count in dead.items() if count]
    if not found:
        return Finding(check="dead letters", status="ok", message="there are none")
    return Finding(
        check="dead letters",
        status="warning",
        message=", ".join(found),
        advice="omniactors streams dlq --topic TOPIC shows them; replay or purge them when the reason is gone",
    )
