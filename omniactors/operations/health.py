"""How a system does: what its agents have done so far, and what is wrong with its store."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from omniactors.errors import BackendError
from omniactors.streams.backend import Finding
from omniactors.streams.envelope import INTERNAL_PREFIX

if TYPE_CHECKING:
    from omniactors.streams.backend import Backend, StreamInfo

NEARLY_FULL = 0.8
"""The share of its limit from which on a stream is worth a warning."""


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


async def examine(backend: Backend, *, stream_limit: int) -> list[Finding]:
    """What the store finds about itself, and what its streams and agents show. Never raises BackendError."""
    findings = await backend.diagnose()
    if findings and findings[0].status == "error":
        return findings
    try:
        paused, streams = await backend.paused(), await backend.streams()
    except BackendError as error:
        return [*findings, Finding(check="streams", status="error", message=str(error))]
    return [*findings, _about_pauses(paused), _about_room(streams, stream_limit), _about_dead_letters(streams)]


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
