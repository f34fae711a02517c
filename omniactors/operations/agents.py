"""What one can ask about agents, and do to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniactors.agents.options import check_name
from omniactors.agents.webhooks import WEBHOOK_AGENT
from omniactors.errors import AgentError
from omniactors.operations.nearness import near
from omniactors.operations.streams import AT_ONCE
from omniactors.streams.backend import DeadFilter
from omniactors.streams.envelope import check_topic

if TYPE_CHECKING:
    from builtins import list as List  # noqa: N812 -- inside the class, `list` is the operation

    from omniactors.streams.backend import AgentRecord, Backend, RuntimeRecord


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
        await self._check_known(name)
        await self._backend.pause(name)

    async def restart(self, name: str) -> int:
        """Have an agent that gave up tried again at once, in every process in which it did; returns how many.

        It tries by itself too, after a pause that grows to a minute. 0 says that it has given up
        nowhere, so that nothing is to be done. Raises AgentError for an agent that is not registered.
        """
        await self._check_known(name)
        return await self._backend.restart(name)

    async def delete(self, name: str, *, dead_letters: bool = False, force: bool = False) -> None:
        """Forget an agent: its groups, registration, pause and counters, and with `dead_letters` those too.

        Entries that only it needed are removed. What it has not read of a topic that no other agent
        reads stays for whoever comes next: `delete_topic` is for that. Results stay until they expire.
        Raises AgentError for an agent that nobody knows, and while a live process runs it unless
        `force` is set: such a process goes on, and makes its groups anew.
        """
        streams, records = await self._backend.streams(), await self._backend.list_agents()
        groups = {(stream.topic, name) for stream in streams for group in stream.groups if group.agent == name}
        groups |= {(record.topic, name) for record in records if record.name == name}
        if not groups:
            known = {record.name for record in records}
            raise _no_agent(name, known)
        await self._check_unused(groups, f"agent {name!r}", force=force)
        for topic, agent in groups if dead_letters else ():
            await self._purge(topic, DeadFilter(agent=agent))
        await self._backend.delete_groups(sorted(groups))

    async def delete_topic(self, topic: str, *, dead_letters: bool = False, force: bool = False) -> int:
        """Forget a topic: all its events, read or not, those that are scheduled, and the agents' groups on it.

        Returns how many events there were. With `dead_letters` those are deleted too. Raises
        AgentError for a topic that nobody knows, and while a live process serves it unless `force` is set.
        """
        streams, records = await self._backend.streams(), await self._backend.list_agents()
        known = {stream.topic for stream in streams} | {record.topic for record in records}
        if check_topic(topic) not in known and not await self._backend.dead_letters(topic, limit=1):
            raise AgentError(f"there is no topic {topic!r}{near(topic, known)}")
        groups = {(topic, record.name) for record in records if record.topic == topic}
        groups |= {(topic, group.agent) for stream in streams if stream.topic == topic for group in stream.groups}
        await self._check_unused(groups, f"topic {topic!r}", force=force)
        if dead_letters:  # those of agents that were deleted before, too
            await self._purge(topic, DeadFilter())
        await self._backend.delete_groups(sorted(groups))
        return await self._backend.delete_stream(topic)

    async def _check_unused(self, groups: set[tuple[str, str]], what: str, *, force: bool) -> None:
        live = [runtime for runtime in await self._backend.runtimes() if _serves(runtime, groups)]
        if live and not force:
            where = ", ".join(f"{runtime.pid} on {runtime.host}" for runtime in live)
            raise AgentError(f"{what} is in use by process {where}: stop that first, or force it")

    async def _purge(self, topic: str, where: DeadFilter) -> None:
        while await self._backend.purge_dead(topic, where, limit=AT_ONCE):
            pass

    async def _check_known(self, name: str) -> None:
        known = {record.name for record in await self._backend.list_agents()} | {WEBHOOK_AGENT}
        if check_name(name) not in known:
            raise _no_agent(name, known)

    async def resume(self, name: str) -> None:
        """End a pause; nothing happens when the agent is not paused."""
        await self._backend.resume(check_name(name))

    async def paused(self) -> List[str]:
        """The names of the agents that are paused, sorted."""
        return sorted(await self._backend.paused())


def _no_agent(name: str, known: set[str]) -> AgentError:
    names = ", ".join(sorted(known - {WEBHOOK_AGENT})) or "none yet"
    return AgentError(f"there is no agent {check_name(name)!r}; there are: {names}{near(name, known)}")


def _serves(runtime: RuntimeRecord, groups: set[tuple[str, str]]) -> bool:
    """Whether a live process runs one of these groups, or may: it does not say (an older version), or tries again."""
    if runtime.groups is None:
        return True
    return not groups.isdisjoint(runtime.groups) or any(agent in runtime.gave_up for _, agent in groups)
