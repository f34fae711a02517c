"""What one can ask about results."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omniactors.streams.backend import Backend
    from omniactors.streams.settlement import ResultRecord


class ResultOperations:
    """`omni.results`: what tasks came to, failures included."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def of_task(self, task_id: str) -> list[ResultRecord]:
        """The unexpired results of a task, oldest first, one per agent; empty while it is pending."""
        return await self._backend.get_results(task_id)
