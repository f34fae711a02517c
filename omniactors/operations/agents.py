"""What one can ask about agents, and do to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniactors.agents.options import check_name
from omniactors.agents.webhooks import WEBHOOK_AGENT
from omniactors.errors import AgentError

if TYPE_CHECKING:
    from builtins import list as List  # noqa: N812 -- inside the class, `list` is the operation

    from omniactors.streams.backend import AgentRecord, Backend


class AgentOperations:
    """`omni.agents`: the registry, which every process on the same store sees."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def list(self) -> List[AgentRecord]:
        """The registered agents, running or not, by topic and name."""
        return await self._backend.list_agents()

    async def pause(self, name: str) -> None:
        """Have no process take events for this agent until `resume`, whatever is restarted meanwhile.

        What is being handled is finished; what waits in memory goes back to its stream as soon as
        the agent's processes notice, which an agent that has room does at once, and a busy one when
        it would take more. Nothing is lost: its streams go on to fill. Raises AgentError for an
        agent that is not registered.
        """
        known = {record.name for record in await self._backend.list_agents()} | {WEBHOOK_AGENT}
        if check_name(name) not in known:
            names = ", ".join(sorted(known - {WEBHOOK_AGENT})) or "none yet"
            raise AgentError(f"there is no agent {name!r}; there are: {names}")
        await self._backend.pause(name)

    async def resume(self, name: str) -> None:
        """End a pause; nothing happens when the agent is not paused."""
        await self._backend.resume(check_name(name))

    async def paused(self) -> List[str]:
        """The names of the agents that are paused, sorted."""
        return sorted(await self._backend.paused())
