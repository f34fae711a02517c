"""Inspecting: streams, dead letters and counters, as those who look after them want them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from omniactors.errors import StreamFull
from omniactors.streams.backend import AgentMetrics, DeadFilter, DeadLetter, GroupInfo, StreamInfo, Whereabouts
from omniactors.streams.portions import PORTION_BYTES, portions
from omniactors.streams.redis.keys import Keys, clean, group_name, group_parts
from omniactors.streams.redis.settling import body_of_letter, read_dead_letter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omniactors.streams.redis.calls import Calls

_SCAN: Final = 1000
_PAGE: Final = 100
_FIRST_PAGE: Final = 10
"""Dead letters that are read before anything is known of their size."""


class Inspector:
    """Reads, and moves dead letters."""

    def __init__(self, calls: Calls, keys: Keys, *, limit: int | None) -> None:
        self._calls = calls
        self._keys = keys
        self._limit = limit

    async def streams(self) -> list[StreamInfo]:
        """Every stream there is, by topic: those of other programs too, so all keys are looked through."""
        groups = await self._groups()
        found = {topic for topic, _ in groups} | await self._stored_topics()
        infos = [await self._stream(topic) for topic in sorted(found)]
        return [info for info in infos if info.length or info.scheduled or info.groups]

    async def _stream(self, topic: str) -> StreamInfo:
        length, scheduled, groups = await self._calls.script("inspect", [topic])
        return StreamInfo(
            topic=topic,
            length=length,
            scheduled=scheduled,
            groups=sorted((_group_info(topic, row) for row in groups), key=lambda group: group.agent),
        )

    async def _groups(self) -> list[tuple[str, str]]:
        members = await self._calls.command("SMEMBERS", self._keys.groups)
        return sorted(group_parts(member.decode()) for member in members)

    async def _stored_topics(self) -> set[str]:
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", self._keys.stream("")) + "*"
        topics: set[str] = set()
        cursor = b"0"
        while True:
            cursor, names = await self._calls.command(
                "SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN, "TYPE", "stream"
            )
            topics.update(name.decode().removeprefix(self._keys.stream("")) for name in names)
            if cursor == b"0":
                break
        members = await self._calls.command("ZRANGE", self._keys.scheduled, 0, -1)
        return topics | {member.decode() for member in members}

    async def find_task(self, task_id: str) -> list[Whereabouts]:
        """Where the task is; only when it is nowhere, what is left of it."""
        found: list[Whereabouts] = []
        groups = await self._groups()
        for topic in sorted({topic for topic, _ in groups} | await self._stored_topics()):
            start = ""
            while True:
                after, places = await self._calls.script("find", [topic, clean(task_id), start])
                found += [
                    Whereabouts(topic=topic, agent=agent.decode() or None, state=state.decode())
                    for agent, state in places
                ]
                start = after.decode()
                if not start:
                    break
        if await self._calls.command("EXISTS", self._keys.result(clean(task_id))):
            found.append(Whereabouts(topic="", state="expired"))
        return [each for each in found if each.state != "expired"] or found

    # -- dead letters ---------------------------------------------------------------------------

    async def dead_letters(self, topic: str, limit: int, where: DeadFilter) -> list[DeadLetter]:
        """The newest that are meant, newest first."""
        return await self._meant(topic, where, limit, is_oldest_first=False)

    async def replay(self, topic: str, where: DeadFilter, limit: int) -> int:
        """Give the oldest that are meant back to their groups; raises StreamFull when they do not all fit."""
        if self._limit is not None:
            meant = await self._meant(topic, where, limit, is_oldest_first=True)
            length, scheduled, _ = await self._calls.script("inspect", [topic])
            if meant and length + scheduled + len(meant) > self._limit:
                raise StreamFull(topic, length + scheduled, self._limit, len(meant))

        async def move(agent: str, letters: list[DeadLetter]) -> int:
            named = [[letter.id, _task_of(letter)] for letter in letters]
            bound = -1 if self._limit is None else self._limit
            bodies = [body_of_letter(letter) for letter in letters]
            reply = await self._calls.once("replay", [bound, topic, agent, named], bodies)
            if isinstance(reply, list):
                raise StreamFull(topic, reply[2], bound, len(letters))
            return int(reply)

        return await self._move(topic, where, limit, move)

    async def purge(self, topic: str, where: DeadFilter, limit: int) -> int:
        """Delete the oldest that are meant."""

        async def delete(agent: str, letters: list[DeadLetter]) -> int:
            key = self._keys.dead(group_name(topic, agent))
            return int(await self._calls.once("purge", [key, [letter.id for letter in letters]]))

        return await self._move(topic, where, limit, delete)

    async def _move(
        self, topic: str, where: DeadFilter, limit: int, move: Callable[[str, list[DeadLetter]], Awaitable[int]]
    ) -> int:
        meant = await self._meant(topic, where, limit, is_oldest_first=True)
        moved = 0
        for chunk in portions(meant, lambda letter: len(letter.body), count=_PAGE):
            for agent in sorted({letter.agent for letter in chunk}):
                moved += await move(agent, [letter for letter in chunk if letter.agent == agent])
        return moved

    async def _agents(self, topic: str, where: DeadFilter) -> list[str]:
        """Those that may have dead letters of the topic."""
        if where.agent is not None:
            return [where.agent]
        agents = {agent for name, agent in await self._groups() if name == topic}
        _, _, groups = await self._calls.script("inspect", [topic])
        return sorted(agents | {_agent_of(topic, row[0]) for row in groups})

    async def _meant(self, topic: str, where: DeadFilter, limit: int, *, is_oldest_first: bool) -> list[DeadLetter]:
        """The first `limit` that are meant, of all agents."""
        found = []
        for agent in await self._agents(topic, where):
            found += await self._meant_of(topic, agent, where, limit, is_oldest_first=is_oldest_first)
        return sorted(found, key=_age, reverse=not is_oldest_first)[: max(limit, 0)]

    async def _meant_of(
        self, topic: str, agent: str, where: DeadFilter, limit: int, *, is_oldest_first: bool
    ) -> list[DeadLetter]:
        key = self._keys.dead(group_name(topic, agent))
        command, first, last = ("XRANGE", "-", "+") if is_oldest_first else ("XREVRANGE", "+", "-")
        found: list[DeadLetter] = []
        page = _FIRST_PAGE
        while len(found) < limit:
            rows = await self._calls.command(command, key, first, last, "COUNT", page)
            letters = (read_dead_letter(letter_id.decode(), fields, topic, agent) for letter_id, fields in rows)
            found += [letter for letter in letters if where.matches(letter)]
            if len(rows) < page:
                break
            # As many as were about PORTION_BYTES, if they were like these.
            size = sum(len(fields[1]) for _, fields in rows)
            page = max(1, min(_PAGE, page * PORTION_BYTES // max(size, 1)))
            first = "(" + rows[-1][0].decode()
        return found[:limit]

    # -- counters -------------------------------------------------------------------------------

    async def metrics(self) -> list[AgentMetrics]:
        """What every agent has done, by topic and agent."""
        found = []
        for topic, agent in await self._groups():
            flat = await self._calls.command("HGETALL", self._keys.counts(group_name(topic, agent)))
            counts = dict(zip(flat[::2], flat[1::2], strict=True))
            found.append(
                AgentMetrics(
                    topic=topic,
                    agent=agent,
                    completed=int(counts.get(b"done", 0)),
                    retried=int(counts.get(b"retry", 0)),
                    dead=int(counts.get(b"dead", 0)),
                    seconds=float(counts.get(b"seconds", 0)),
                )
            )
        return found


def _task_of(letter: DeadLetter) -> str:
    task_id = (letter.failed_message or {}).get("task_id")
    return clean(task_id) if isinstance(task_id, str) else ""


def _group_info(topic: str, row: list[Any]) -> GroupInfo:
    name, new, due, held, delayed, dead, served = row
    return GroupInfo(
        agent=_agent_of(topic, name),
        waiting=new + due,
        pending=held,
        delayed=delayed,
        dead=dead,
        served_at=int(served) / 1000 if served else None,
    )


def _agent_of(topic: str, group: bytes) -> str:
    """The agent of a topic's group, or the whole name of a group that another program made in its own way."""
    return group.decode().removeprefix(group_name(topic, ""))


def _age(letter: DeadLetter) -> tuple[int, ...]:
    return tuple(map(int, letter.id.split("-")))
