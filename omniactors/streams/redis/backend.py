"""`RedisBackend`: the backend protocol over Redis Streams, for agents on several machines."""

from __future__ import annotations

import logging
import math
import os
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from omniactors.errors import BackendError, BackendRefused
from omniactors.streams.backend import EVERY_DEAD_LETTER, AgentRecord, Fetched, RuntimeRecord
from omniactors.streams.envelope import encode_json
from omniactors.streams.inhand import InHand
from omniactors.streams.records import read_all
from omniactors.streams.redis import doctoring
from omniactors.streams.redis.calls import Caller, Calls, GeneralError
from omniactors.streams.redis.client import TrioRedis
from omniactors.streams.redis.consumer import Consumer
from omniactors.streams.redis.inspecting import Inspector
from omniactors.streams.redis.keys import Keys, clean
from omniactors.streams.redis.lease import Lease
from omniactors.streams.redis.listening import ResultListener
from omniactors.streams.redis.publishing import Publisher
from omniactors.streams.redis.settling import Blocks, blamed, parts_of
from omniactors.streams.redis.taking import body_of, is_entry_id, merge_wants, read_answer, want_arguments
from omniactors.streams.redis.watching import Watcher
from omniactors.streams.runs import PerRun
from omniactors.streams.settlement import ResultRecord

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence
    from pathlib import Path

    from omniactors.streams.backend import (
        AgentMetrics,
        DeadFilter,
        DeadLetter,
        Finding,
        Published,
        Settled,
        StreamInfo,
        Want,
        Whereabouts,
    )
    from omniactors.streams.redis.settling import Prepared
    from omniactors.streams.redis.taking import Taken
    from omniactors.streams.settlement import EntryKey, Publication, Settlement

logger = logging.getLogger("omniactors.streams")

SETTLED_AT_ONCE: Final = 128
"""Settlements in one call: it holds up everybody else for a millisecond. More at once, in one call or in several under
way together, made a pipeline slower: the next fetch waits, and then handlers do."""

BODIES_AT_ONCE: Final = 16
"""Bodies in one reply: each may be as large as an event can be."""

FAREWELL: Final = 5.0
"""Seconds for giving back what is held at the end of `serve`."""

_record = msgspec.json.Decoder(ResultRecord)
_agent = msgspec.json.Decoder(AgentRecord)
_runtime = msgspec.json.Decoder(RuntimeRecord)

Group = tuple[str, str]


class _Here:
    """What a backend has in one trio run. Of all these one serves, at most, and uses the last four."""

    def __init__(self, calls: Calls, publisher: Publisher, inspector: Inspector, consumer: Consumer) -> None:
        self.calls = calls
        self.publisher = publisher
        self.inspector = inspector
        self.listener = ResultListener(calls)
        self.consumer = consumer
        self.watcher = Watcher(calls, consumer.keys)
        self.fetching = trio.Lock()
        self.is_unsure = False
        """Whether a fetch may have taken what we do not know of."""


class RedisBackend:
    """A `Backend` over the Redis (6.2 or newer) or Valkey at `url`, for any number of processes and machines.

    Usable from any thread and any number of trio runs, each with connections of its own, and after a fork.

    Connects on first use. `prefix` stands before every key. Another consumer's work is taken over
    `lease` seconds after its last sign of life. An id is remembered for `dedupe_window` seconds.
    `stream_limit` bounds each stream, None does not. A call that finds the server away tries again
    for `patience` seconds before it raises BackendError; settlements and releases try for ever.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "",
        lease: float = 15.0,
        dedupe_window: float = 86_400.0,
        stream_limit: int | None = None,
        patience: float = 5.0,
    ) -> None:
        for name, value in (("lease", lease), ("dedupe_window", dedupe_window), ("patience", patience)):
            if not math.isfinite(value) or value < 0 or (name == "lease" and value == 0):
                raise ValueError(f"{name} must be a finite number of seconds of at least 0, not {value!r}")
        self._redis = TrioRedis(url, connect_timeout=patience or 1.0, response_timeout=patience or 1.0)
        self._keys = Keys(prefix)
        self._patience = patience
        self._stream_limit = stream_limit
        self._window = dedupe_window
        self._url = url
        self._lease = lease
        self._in_hand = InHand()
        self._caller = Caller()
        self._here = PerRun(self._new_here)
        self._serving: _Here | None = None
        """Where this process is a consumer."""
        self._fetches = 0
        self._groups: set[Group] = set()
        """Those that were there once: one that is missing later was lost."""
        self._foreign: set[str] = set()
        self._agents: dict[str, list[Any]] = {}
        """What was registered here: after a flush it is registered again."""

    def _new_here(self) -> _Here:
        if self._caller.pid != os.getpid():
            self._caller, self._serving = Caller(), None
        calls = Calls(self._redis, self._keys, self._caller, patience=self._patience)
        lease = Lease(self._url, self._lease, self._keys, self._in_hand)
        return _Here(
            calls,
            Publisher(calls, self._keys, window=self._window, limit=self._stream_limit),
            Inspector(calls, self._keys, limit=self._stream_limit),
            Consumer(calls, self._keys, lease, self._in_hand, on_reentry=self._reentered),
        )

    def __repr__(self) -> str:
        return f"<RedisBackend {self.location}>"

    @property
    def settled_at_once(self) -> int:
        """What the server does in a millisecond; meanwhile others are handled, and fetched."""
        return SETTLED_AT_ONCE

    @property
    def in_hand(self) -> InHand:
        """Shared with the companion process, while this backend serves."""
        return self._in_hand

    @property
    def location(self) -> str:
        """The URL without password."""
        return self._redis.location

    # -- publishing -----------------------------------------------------------------------------

    def publish(self, publications: Sequence[Publication]) -> Coroutine[Any, Any, list[Published]]:
        """Append all of them in one write, when awaited; durable as the server's append-only file is."""
        return self._here().publisher.publish(publications)

    async def create_groups(self, groups: Sequence[tuple[str, str]]) -> None:
        """Create groups (topic, agent) at the start of their streams."""
        if groups:
            await self._here().calls.script("create", [[[clean(topic), clean(agent)] for topic, agent in groups]])
            self._groups.update(groups)

    # -- being a consumer -----------------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a consumer until cancelled; raises BackendError when this backend is one already."""
        here = self._here()
        if self._serving is not None:
            raise BackendError("this backend serves already")
        self._serving = here
        try:
            here.watcher.start(await here.consumer.enter())
            async with trio.open_nursery() as nursery:
                await nursery.start(self._redis.run)
                await nursery.start(here.consumer.keep)
                task_status.started(here.consumer.id)
        finally:
            self._serving = None
            with trio.move_on_after(FAREWELL) as scope:
                scope.shield = True
                if here.consumer.id:
                    await here.consumer.leave()
                await here.watcher.disconnect()

    async def _reentered(self, bell: bytes) -> None:
        """Our lease was lost, and perhaps everything else."""
        here = self._here()
        here.watcher.start(bell)
        here.watcher.change_all()
        if self._agents:
            await here.calls.script("register", [list(self._agents.values())])

    async def announce(self, gateway: str | None, problem: str | None = None) -> None:
        """Record where this consumer's gateway listens, or why it is down; raises BackendError unless it serves."""
        consumer = self._require_serving("announce").consumer
        await consumer.announce(gateway, None if problem is None else clean(problem))

    async def report(
        self, groups: Sequence[tuple[str, str]], gave_up: Mapping[str, str], reads: Sequence[str] = ()
    ) -> None:
        """Record what this consumer serves, and which agents gave up; raises BackendError when it does not serve."""
        here = self._require_serving("report")
        names = [(clean(topic), clean(agent)) for topic, agent in groups]
        await here.consumer.report(names, {clean(agent): clean(reason) for agent, reason in gave_up.items()}, reads)

    async def restart(self, agent: str) -> int:
        """Have every consumer in which this agent gave up try it again at once."""
        return int(await self._here().calls.script("restart", [clean(agent)]))

    async def restarts(self) -> frozenset[str]:
        """The agents of this consumer that are wanted again."""
        here = self._here()
        wanted = await here.calls.command("SMEMBERS", self._keys.wanted(here.consumer.id))
        return frozenset(name.decode() for name in wanted)

    async def runtimes(self) -> list[RuntimeRecord]:
        """The runtimes that are alive now, oldest first."""
        records = read_all(_runtime.decode, await self._here().calls.script("alive", []), "registered runtimes")
        return sorted(records, key=lambda record: (record.started_at, record.consumer))

    # -- taking ---------------------------------------------------------------------------------

    async def fetch(self, wants: Sequence[Want]) -> Fetched:
        """Take entries; raises BackendError when this backend does not serve, or the server is away."""
        here = self._require_serving("fetch")
        merged = merge_wants(wants)
        async with here.fetching:
            if here.is_unsure:
                await here.consumer.recover(self._fetches)
            here.watcher.fetching([want.topic for want in merged])
            self._fetches += 1
            for want in merged:
                here.consumer.take((want.topic, want.agent), (), self._fetches)
            here.is_unsure = True
            *answers, has_more = await self._ask(here, merged)
            taken = [self._take(here, want, answer) for want, answer in zip(merged, answers, strict=True)]
            here.is_unsure = False
        return Fetched(
            entries=[entry for each in taken for entry in each.entries],
            position=self._fetches,
            next_due=min((each.due for each in taken if each.due is not None), default=None),
            paused=frozenset(each.want.agent for each in taken if each.is_paused),
            has_more=bool(has_more),
        )

    async def _ask(self, here: _Here, wants: list[Want]) -> list[Any]:
        lease = round(self._lease * 1000)
        while True:
            consumer = here.consumer.id
            # Not sent again when its reply is lost: `recover` gives back what it took.
            answers = await here.calls.script(
                "fetch",
                [here.calls.client, self._fetches, consumer, lease, [want_arguments(want) for want in wants]],
                patience=0,
            )
            if answers is not None:
                return list(answers)
            await here.consumer.reenter(consumer)

    def _take(self, here: _Here, want: Want, answer: list[Any]) -> Taken:
        taken = read_answer(want, answer, here.consumer.id)
        ids = [entry.key.entry_id for entry in taken.entries]
        here.consumer.take((want.topic, want.agent), ids, self._fetches)
        here.watcher.fetched(want.topic, taken.top, self._fetches)
        if taken.is_created and (want.topic, want.agent) in self._groups:
            logger.error(
                "the group of agent %r on %r was gone and is made anew: the store was flushed, or the group destroyed; "
                "what is left of the stream is delivered from its start",
                want.agent,
                want.topic,
            )
        self._groups.add((want.topic, want.agent))
        if taken.lost < 0:
            here.watcher.ignore(want.topic)
            self._tell_foreign(want.topic)
        elif taken.lost:
            logger.error(
                "%d events of %r were trimmed away by another program before agent %r was done with them",
                taken.lost,
                want.topic,
                want.agent,
            )
        return taken

    def _tell_foreign(self, topic: str) -> None:
        if topic not in self._foreign:
            self._foreign.add(topic)
            logger.error("the key %s holds no stream: nothing is taken from it", self._keys.stream(topic))

    async def claim(self, keys: Sequence[tuple[EntryKey, str]]) -> list[bool]:
        """Claim fetched entries of ordered groups, in the order of their fetch."""
        here = self._here()
        blocks: dict[Group, list[tuple[int, EntryKey, str]]] = {}
        for place, (key, ordering) in enumerate(keys):
            if self._is_ours(here, key):
                blocks.setdefault((key.topic, key.agent), []).append((place, key, ordering))
        flags = [False] * len(keys)
        for (topic, agent), entries in blocks.items():
            items = [[key.entry_id, clean(ordering)] for _, key, ordering in entries]
            consumer = entries[0][1].consumer
            reply = await here.calls.script("claim", [consumer, clean(topic), clean(agent), items])
            for (place, key, _), flag in zip(entries, reply, strict=True):
                flags[place] = bool(flag)
                if not flag:
                    here.consumer.drop(here.consumer.noted([key]))
        return flags

    async def withdraw(self, groups: Sequence[tuple[str, str]]) -> None:
        """Take no more of these groups: what others handed over to us goes back to them."""
        here = self._here()
        if self._serving is here and groups:
            names = [[clean(topic), clean(agent)] for topic, agent in groups]
            await here.calls.script("withdraw", [here.consumer.id, names])

    async def wait(self, positions: Mapping[str, int]) -> frozenset[str]:
        """The topics in which something may have changed since the fetch of that number, as soon as there are any."""
        return await self._here().watcher.wait(positions)

    # -- settling -------------------------------------------------------------------------------

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """Carry out each settlement whole or not at all; tries until the server has answered."""
        here = self._here()
        found: list[Settled] = [False] * len(settlements)
        await trio.lowlevel.checkpoint()
        ours = [
            (place, settlement) for place, settlement in enumerate(settlements) if self._is_ours(here, settlement.key)
        ]
        for start in range(0, len(ours), SETTLED_AT_ONCE):
            chunk = ours[start : start + SETTLED_AT_ONCE]
            outcomes = await self._settle_chunk(here, [settlement for _, settlement in chunk])
            for (place, _), outcome in zip(chunk, outcomes, strict=True):
                found[place] = outcome
        return found

    async def _settle_chunk(self, here: _Here, chunk: list[Settlement]) -> list[Settled]:
        outcomes: list[Settled] = []
        try:
            bodies = await self._bodies(here, [settlement.key for settlement in chunk if settlement.dead is not None])
        except BackendError as error:
            return [error] * len(chunk)
        for part in parts_of(chunk, bodies):
            noted = here.consumer.noted(each.settlement.key for each in part)
            settled = blamed(await self._settle(here, part))
            kept = [one.settlement.key for one, end in zip(part, settled, strict=True) if not isinstance(end, bool)]
            still = here.consumer.noted(kept)
            here.consumer.drop([one for one in noted if one not in still] if still else noted)
            outcomes += settled
        return outcomes

    async def _settle(self, here: _Here, part: Sequence[Prepared]) -> list[Settled]:
        """Carry out what goes into one call; what it refuses as a whole is halved until the culprits are alone."""
        consumer = part[0].settlement.key.consumer
        found: list[Settled] = [False] * len(part)
        blocks = Blocks(part)
        try:
            reply = await here.calls.once("settle", [consumer, blocks.arguments], blocks.words, patience=math.inf)
        except (BackendRefused, GeneralError) as error:
            if len(part) == 1:
                return [error]
            half = len(part) // 2
            return [*await self._settle(here, part[:half]), *await self._settle(here, part[half:])]
        except BackendError as error:
            return [error] * len(part)
        for place, flag in zip(blocks.places, reply, strict=True):
            found[place] = bool(flag)
        return found

    async def _bodies(self, here: _Here, keys: list[EntryKey]) -> dict[EntryKey, bytes]:
        """The bodies of entries that go to the dead letters."""
        bodies: dict[EntryKey, bytes] = {}
        for start in range(0, len(keys), BODIES_AT_ONCE):
            chunk = keys[start : start + BODIES_AT_ONCE]
            blocks = [[clean(key.topic), [key.entry_id]] for key in chunk]
            found = await here.calls.script("bodies", [blocks], patience=math.inf)
            bodies.update((key, body_of(fields)) for key, fields in zip(chunk, found, strict=True))
        return bodies

    async def release(self, keys: Sequence[EntryKey]) -> None:
        """Give entries back to their groups at once; tries until the server has answered."""
        here = self._here()
        blocks: dict[Group, list[str]] = {}
        ours = [key for key in keys if self._is_ours(here, key)]
        for key in ours:
            blocks.setdefault((clean(key.topic), clean(key.agent)), []).append(key.entry_id)
        if not blocks:
            await trio.lowlevel.checkpoint()
            return
        arguments = [[topic, agent, ids] for (topic, agent), ids in blocks.items()]
        noted = here.consumer.noted(ours)
        await here.calls.once("release", [ours[0].consumer, arguments], patience=math.inf)
        here.consumer.drop(noted)

    def _is_ours(self, here: _Here, key: EntryKey) -> bool:
        return self._serving is here and key.consumer == here.consumer.id and is_entry_id(key.entry_id)

    def _require_serving(self, operation: str) -> _Here:
        here = self._here()
        if self._serving is not here:
            raise BackendError(f"{operation} is only possible while serve() runs")
        return here

    # -- results --------------------------------------------------------------------------------

    async def get_results(self, task_id: str) -> list[ResultRecord]:
        """The unexpired results of a task, oldest first, one per agent."""
        found = await self._here().calls.script("results", [clean(task_id)])
        return sorted((_record.decode(record) for record in found), key=lambda record: record.processed_at)

    async def wait_results(self, task_id: str, known: Sequence[ResultRecord]) -> list[ResultRecord]:
        """As `get_results`, as soon as one is not among `known`; the server tells, it is not asked again."""

        async def read() -> list[ResultRecord] | None:
            records = await self.get_results(task_id)
            return records if any(record not in known for record in records) else None

        return await self._here().listener.wait(self._keys.done(clean(task_id)), read)

    # -- looking after it -----------------------------------------------------------------------

    async def find_task(self, task_id: str) -> list[Whereabouts]:
        """What is known of a task beside its results."""
        return await self._here().inspector.find_task(task_id)

    async def dead_letters(self, topic: str, *, limit: int, where: DeadFilter = EVERY_DEAD_LETTER) -> list[DeadLetter]:
        """The newest dead letters of a topic's groups that `where` admits, newest first."""
        return await self._here().inspector.dead_letters(clean(topic), limit, where)

    async def replay_dead(self, topic: str, where: DeadFilter, *, limit: int) -> int:
        """Give the oldest `limit` of these dead letters back to their groups as new."""
        return await self._here().inspector.replay(clean(topic), where, limit)

    async def purge_dead(self, topic: str, where: DeadFilter, *, limit: int) -> int:
        """Delete the oldest `limit` of these dead letters."""
        return await self._here().inspector.purge(clean(topic), where, limit)

    async def streams(self) -> list[StreamInfo]:
        """Every stream there is, by topic."""
        return await self._here().inspector.streams()

    async def metrics(self) -> list[AgentMetrics]:
        """What every agent has done, by topic and agent."""
        return await self._here().inspector.metrics()

    async def pause(self, agent: str) -> None:
        """Have no consumer take anything for this agent until `resume`."""
        await self._here().calls.script("pause", [clean(agent), 1])

    async def resume(self, agent: str) -> None:
        """End a pause."""
        await self._here().calls.script("pause", [clean(agent), 0])

    async def paused(self) -> frozenset[str]:
        """The agents that are paused."""
        return frozenset(name.decode() for name in await self._here().calls.command("SMEMBERS", self._keys.paused))

    async def save_agents(self, agents: Sequence[AgentRecord]) -> None:
        """Register agents; one that exists keeps its `created_at`."""
        rows = [
            [
                clean(f"{agent.name}:{agent.topic}"),
                msgspec.json.encode(agent).decode(),
                repr(agent.created_at or time.time()),
            ]
            for agent in agents
        ]
        if rows:
            await self._here().calls.script("register", [rows])
            self._agents.update({row[0]: row for row in rows})

    async def list_agents(self) -> list[AgentRecord]:
        """The registered agents, by topic and name."""
        flat = await self._here().calls.command("HGETALL", self._keys.agents_since)
        since = dict(zip(flat[::2], flat[1::2], strict=True))

        def read(row: tuple[bytes, bytes]) -> AgentRecord:
            return msgspec.structs.replace(_agent.decode(row[1]), created_at=float(since.get(row[0], 0.0)))

        flat = await self._here().calls.command("HGETALL", self._keys.agents)
        records = read_all(read, zip(flat[::2], flat[1::2], strict=True), "registered agents")
        return sorted(records, key=lambda record: (record.topic, record.name))

    async def save_config(self, key: str, value: Any) -> None:  # noqa: ANN401 -- any JSON value
        """Keep a value for all processes."""
        await self._here().calls.command("HSET", self._keys.config, clean(key), encode_json(value))

    async def delete_config(self, key: str) -> bool:
        """Forget a value; True when there was one."""
        return bool(await self._here().calls.command("HDEL", self._keys.config, clean(key)))

    async def config(self) -> dict[str, Any]:
        """All values that are kept, by key."""
        flat = await self._here().calls.command("HGETALL", self._keys.config)
        return {name.decode(): msgspec.json.decode(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}

    async def backup(self, target: Path, *, overwrite: bool = False) -> None:  # noqa: ARG002 -- the protocol's
        """Raises BackendRefused: a server is copied by its own means."""
        await trio.lowlevel.checkpoint()
        raise BackendRefused(
            f"{self.location} makes its own copies: BGSAVE writes one there, redis-cli --rdb {target} fetches one"
        )

    async def restore(self, source: Path) -> Path | None:
        """Raises BackendRefused: a server is restored by its own means."""
        await trio.lowlevel.checkpoint()
        raise BackendRefused(
            f"{self.location} is restored by its own means: stop the server, put {source} in the place of its dump "
            "(dbfilename), with appendonly off, and start it"
        )

    async def diagnose(self) -> list[Finding]:
        """Check reachability, version, memory policy, persistence, role, clock and trimming publishers."""
        return await doctoring.diagnose(self._here().calls, self._keys)

    async def delete_groups(self, groups: Sequence[tuple[str, str]]) -> None:
        """Forget groups, and trim what only they needed."""
        if groups:
            await self._here().calls.script("forget", [[[clean(topic), clean(agent)] for topic, agent in groups]])
            self._groups.difference_update(groups)
            for topic, agent in groups:
                self._agents.pop(clean(f"{agent}:{topic}"), None)

    async def delete_stream(self, topic: str) -> int:
        """Remove all entries and delayed publications of a topic without groups."""
        return int(await self._here().calls.once("empty", [clean(topic)]))

    async def close(self) -> None:
        """Finish what this run has accepted and disconnect it; the next call connects again."""
        here = self._here()
        await here.calls.close()
        await here.watcher.disconnect()
        await here.listener.disconnect()
