"""Reports: what tasks, agents and supervisors do, as events on the bus."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from omniactors.actors.inspection import ChildInfo
from omniactors.agents.attempt import task_event
from omniactors.events.event import Event

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from omniactors.actors.notices import Notice
    from omniactors.agents.settler import Fate, Job
    from omniactors.events.bus import EventBus


def report_settled(bus: EventBus, job: Job, fate: Fate) -> None:
    """Tell how an event ended; a run that consists of this one task is closed after its last try."""
    settlement, event = job.settlement, job.event
    is_committed = fate != "late"
    if event is None:
        if is_committed and settlement.dead is not None:
            bus.publish(_unreadable(job))
        return
    for name, data in _ends(job, fate):
        bus.publish(task_event(name, event, settlement.key.agent, **data))
    for publication in settlement.publications if is_committed else ():
        published = {"task_id": publication.task_id, "topic": publication.topic, "causation_id": event.id}
        run_id = event.correlation_id or publication.task_id
        bus.publish(Event(run_id=run_id, event_type="task.published", data=published))
    if is_committed and settlement.retry is None and event.correlation_id is None:
        bus.close_stream(event.id)


def _ends(job: Job, fate: Fate) -> Iterator[tuple[str, dict[str, Any]]]:
    settlement, error = job.settlement, job.error
    told: dict[str, Any] = {"seconds": round(settlement.seconds, 6)}
    if fate == "unconfirmed":
        told["unconfirmed"] = True
    if error is not None:
        told |= {"error": error.message, "error_type": error.type}
    if fate == "late":
        yield "task.late_completion", told
    elif settlement.retry is not None:
        yield "task.failed", told
        yield "task.retried", {"after": settlement.retry.after}
    elif settlement.dead is not None:
        yield "task.failed", told
        yield "task.dead_lettered", {"reason": settlement.dead.reason, "error": settlement.dead.error.message}
    else:
        yield "task.completed", told


def _unreadable(job: Job) -> Event:
    key, dead = job.settlement.key, job.settlement.dead
    return Event(
        event_type="task.dead_lettered",
        data={
            "topic": key.topic,
            "agent": key.agent,
            "entry_id": key.entry_id,
            "reason": dead.reason if dead else None,
            "error": dead.error.message if dead else None,
        },
    )


def report_notice(bus: EventBus, notice: Notice, agents: Mapping[str, str]) -> None:
    """Tell what happened in the supervision tree; `agents` gives the name of the agent at a path."""
    kind, data = _described(notice)
    bus.publish(Event(event_type=f"supervisor.{kind}", data={"path": notice.path, **data}))
    parent, _, member = notice.path.rpartition("/")
    agent, instance = (agents[notice.path], "") if notice.path in agents else (agents.get(parent), member)
    if agent is not None:
        told = _AGENT_EVENTS.get(kind)
        # One event for the agent, not one for each of its instances, unless an instance crashed.
        if told is not None and (not instance or kind in ("child_exited", "child_restart_scheduled")):
            bus.publish(Event(event_type=told, data={"agent": agent, "instance": instance, **data}))


_AGENT_EVENTS = {
    "child_started": "agent.started",
    "child_stopped": "agent.stopped",
    "child_exited": "agent.crashed",
    "child_restart_scheduled": "agent.restarted",
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
    return value if isinstance(value, int | float) else str(value)
