"""What one can ask about results, and about tasks that have none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import msgspec

from omniactors.errors import TaskFailed
from omniactors.streams.backend import Whereabouts
from omniactors.streams.envelope import made_at

if TYPE_CHECKING:
    from omniactors.streams.backend import Backend
    from omniactors.streams.settlement import ResultRecord


TaskState = Literal["success", "failed", "scheduled", "queued", "running", "retrying", "expired", "unknown"]

_BY_PROGRESS: tuple[TaskState, ...] = ("running", "retrying", "queued", "scheduled", "expired")


class TaskStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a task: how far it has come, and where it is while it has no result.

    "success" and "failed" say that there is a result; "scheduled", "queued", "running" and "retrying"
    that it is to come; "expired" that there was one, or that all there was of a task of that age is
    gone; "unknown" that no such task was published here, as far as the store can tell.
    """

    task_id: str
    state: TaskState
    places: tuple[Whereabouts, ...] = ()


def failure_of(record: ResultRecord) -> TaskFailed:
    """The error that a failed result stands for."""
    return TaskFailed(
        record.task_id,
        record.agent,
        record.error or "",
        record.attempts,
        error_type=record.error_type or "",
        traceback=record.traceback or "",
    )


class ResultOperations:
    """`omni.results`: what tasks came to, failures included."""

    def __init__(self, backend: Backend, *, result_ttl: float) -> None:
        self._backend = backend
        self._result_ttl = result_ttl

    async def of_task(self, task_id: str) -> list[ResultRecord]:
        """The unexpired results of a task, oldest first, one per agent; empty while it is pending."""
        return await self._backend.get_results(task_id)

    async def status(self, task_id: str) -> TaskStatus:
        """How far a task has come. Without a result every stream is looked through: for people, not for a loop."""
        records = await self._backend.get_results(task_id)
        if records:
            is_success = any(record.status == "success" for record in records)
            return TaskStatus(task_id=task_id, state="success" if is_success else "failed")
        places = tuple(await self._backend.find_task(task_id))
        for state in _BY_PROGRESS:
            if any(place.state == state for place in places):
                return TaskStatus(task_id=task_id, state=state, places=places)
        made = made_at(task_id)
        is_old = made is not None and time.time() - made > 0 and time.time() - made >= self._result_ttl
        return TaskStatus(task_id=task_id, state="expired" if is_old else "unknown")
