"""Reports: what tasks, agents and supervisors do, as events on the bus."""

from __future__ import annotations

import re
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from omniactors.actors.inspection import ChildInfo
from omniactors.actors.notices import ChildStarted
from omniactors.events.event import Draft, Event
from omniactors.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omniactors.actors.notices import Notice
    from omniactors.agents.settler import Fate, Job
    from omniactors.events.bus import EventBus
    from omniactors.streams.envelope import EventEnvelope
    from omniactors.streams.settlement import Publication


_TASK = ("task_id", "topic", "agent", "attempt", "causation_id")
_COMPLETED = (*_TASK, "seconds")
_PUBLISHED = ("task_id", "topic", "causation_id")


def _task_draft(
    event_type: str, event: EventEnvelope[Any], agent: str, names: tuple[str, ...] = _TASK, *more: object
) -> Draft:
    """A bus event about a task, in the task's run; `names` are those of what all of them tell, then of `more`."""
    task_id, correlation_id, causation_id, topic = event.id, event.correlation_id, event.causation_id, event.topic
    run_id = correlation_id or task_id
    return Draft(
        run_id,
        event_type,
        names,
        (task_id, topic, agent, event.delivery_attempts, causation_id, *more),
        len(task_id) + len(run_id) + (len(causation_id) if causation_id else 0) + len(topic),
        time.time(),
    )


def started_draft(event: EventEnvelope[Any], agent: str) -> Draft:
    """The bus event that a handler begins with a task."""
    return _task_draft("task.started", event, agent)


def published_draft(publication: Publication, *, is_duplicate: bool = False) -> Draft:
    """The bus event about a publish, in the run of what was published."""
    task_id, topic, causation_id = publication.task_id, publication.topic, publication.causation_id
    run_id = publication.correlation_id or task_id
    return Draft(
        run_id,
        "task.duplicate" if is_duplicate else "task.published",
        _PUBLISHED,
        (task_id, topic, causation_id),
        len(task_id) + len(run_id) + (len(causation_id) if causation_id else 0) + len(topic),
        time.time(),
    )


def settled_drafts(job: Job, fate: Fate) -> list[Draft]:
    """How an event ended; a run that consists of this one task is closed after its last try."""
    settlement, event = job.settlement, job.event
    if event is None:
        return []
    agent, seconds = settlement.key.agent, round(settlement.seconds, 6)
    if settlement.retry is None and settlement.dead is None and fate == "committed":
        ends = [_task_draft("task.completed", event, agent, _COMPLETED, seconds)]
    else:
        ends = [
            _task_draft(name, event, agent, (*_TASK, *told), *told.values()) for name, told in _ends(job, fate, seconds)
        ]
        for draft in ends:
            draft.weight += len(job.error.text) if job.error is not None else 0
    if fate != "late":
        ends[-1].ends_run = settlement.retry is None and event.correlation_id is None
        ends += [published_draft(publication) for publication in settlement.publications]
    return ends


def _ends(job: Job, fate: Fate, seconds: float) -> list[tuple[str, dict[str, Any]]]:
    """The types of what is told, and what is told beside the task itself."""
    settlement = job.settlement
    told: dict[str, Any] = {"seconds": seconds}
    if fate == "unconfirmed":
        told["unconfirmed"] = True
    if job.error is not None:
        told |= {"error": job.error.text, "error_type": job.error.type}
    if fate == "late":
        return [("task.late_completion", told)]
    if settlement.retry is not None:
        return [("task.failed", told), ("task.retried", {"after": settlement.retry.after})]
    if settlement.dead is not None:
        dead = {"reason": settlement.dead.reason, "error": settlement.dead.error.text}
        return [("task.failed", told), ("task.dead_lettered", dead)]
    return [("task.completed", told)]


def report_unreadable(bus: EventBus, job: Job) -> None:
    """Tell of an entry that was no event, and is dead."""
    key, dead = job.settlement.key, job.settlement.dead
    if dead is None:
        return
    data = {
        "topic": key.topic,
        "agent": key.agent,
        "entry_id": key.entry_id,
        "reason": dead.reason,
        "error": dead.error.text,
    }
    bus.publish(Event(event_type="task.dead_lettered", data=data))


def report_notice(bus: EventBus, notice: Notice, agents: Mapping[str, str]) -> None:
    """Tell what happened in the supervision tree; `agents` gives the name of the agent at a path."""
    kind, data = _described(notice)
    bus.publish(Event(event_type=f"supervisor.{kind}", data={"path": notice.path, **data}))
    parent, _, member = notice.path.rpartition("/")
    agent, instance = (agents[notice.path], "") if notice.path in agents else (agents.get(parent), member)
    if agent is not None:
        # One event for the agent, not one for each of its instances, unless an instance crashed or is back.
        if isinstance(notice, ChildStarted) and instance:
            told = "agent.restarted" if notice.incarnation > 1 else None
        else:
            told = _AGENT_EVENTS.get(kind) if not instance or kind == "child_exited" else None
        if told is not None:
            bus.publish(Event(event_type=told, data={"agent": agent, "instance": instance, **data}))


_AGENT_EVENTS = {
    "child_started": "agent.started",
    "child_stopped": "agent.stopped",
    "child_exited": "agent.crashed",
    "supervisor_gave_up": "agent.gave_up",
}


def _described(notice: Notice) -> tuple[str, dict[str, Any]]:
    """The notice's kind, its class name in snake case, and its fields as JSON values."""
    kind = re.sub(r"(?<!^)(?=[A-Z])", "_", type(notice).__name__).lower()
    values = {field.name: getattr(notice, field.name) for field in fields(notice) if field.name != "path"}
    return kind, {name: _plain(value) for name, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, ChildInfo):
        return value.as_dict()
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, int | float) else redact(str(value))
