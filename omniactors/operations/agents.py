"""What one can ask about agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omniactors.streams.backend import AgentRecord, Backend


class AgentOperations:
    """`omni.agents`: the registry, which every process on the same store sees."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def list(self) -> list[AgentRecord]:
        """The registered agents, running or not, by topic and name."""
        return await self._backend.list_agents()
