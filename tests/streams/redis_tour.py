"""A tour of all that a system asks of Redis: every command and every kind of key, at least once."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import trio

from omniactors.streams.backend import AgentRecord, DeadFilter, Entry, Want
from omniactors.streams.redis.backend import RedisBackend
from omniactors.streams.redis.calls import Caller, Calls
from omniactors.streams.redis.client import TrioRedis
from omniactors.streams.redis.keys import Keys
from omniactors.streams.settlement import Retry
from tests.streams.contract_kit import AGENT, LIMIT, TOPIC, dead, done, event, next_fetch, numbered, record, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from omniactors.streams.backend import Backend

LEASE = 1.0
GHOST_LEASE = 50
"""Milliseconds."""


@dataclass
class Tour:
    """The stops are in an order that works on an empty store; `look` is called where there is something to see."""

    url: str
    prefix: str
    look: Callable[[], None] = lambda: None

    async def take(self) -> None:
        """Make all of it; raises whatever the store refuses."""
        with trio.fail_after(6 * LIMIT):
            async with self._open() as one, self._open() as two, self._calls() as calls:
                await self._publish(one)
                async with serving(one), serving(two):
                    await self._register(one)
                    await self._settle(one)
                    await self._keep_order(one, two, calls)
                    await self._limit(one)
                    await self._wait(one)
                    await self._replay(one)
                    await self._take_over(one, calls)
                    await self._pause(one)
                    await trio.sleep(LEASE / 2)  # the lease is renewed by its thread, in real time
                await self._inspect(one)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[RedisBackend]:
        backend = RedisBackend(self.url, prefix=self.prefix, lease=LEASE, stream_limit=1000)
        try:
            yield backend
        finally:
            with trio.CancelScope(shield=True):
                await backend.close()

    @asynccontextmanager
    async def _calls(self) -> AsyncIterator[Calls]:
        """For what no backend does on demand: dying, and losing a reply."""
        redis = TrioRedis(self.url)
        yield Calls(redis, Keys(self.prefix), Caller(), patience=LIMIT)
        await redis.aclose()

    async def _publish(self, one: Backend) -> None:
        await one.create_groups([(TOPIC, AGENT), (TOPIC, "second"), ("other", AGENT)])
        await one.publish([event("given", dedupe=True), *numbered(2)])
        (again,) = await one.publish([event("given", dedupe=True)])
        assert again.duplicate
        await one.publish([event("soon", topic="later", body=b'{"n":0}')])
        later = event("later", topic="later", body=b'{"n":1}')
        await one.publish([msgspec.structs.replace(later, delay=delay) for delay in (0.1, 3600)])
        self.look()

    async def _register(self, one: RedisBackend) -> None:
        await one.save_agents([AgentRecord(topic=TOPIC, name=AGENT)])
        await one.announce("http://127.0.0.1:1")
        await one.report([(TOPIC, AGENT)], {AGENT: "OSError: no disk"})
        assert await one.restart(AGENT) == 1
        self.look()
        assert [runtime.gateway for runtime in await one.runtimes()].count(None) == 1
        await one.save_config("kept", 1)
        await one.save_config("forgotten", 2)
        assert await one.delete_config("forgotten")
        self.look()

    async def _settle(self, one: RedisBackend) -> None:
        """A success with a result and a publication, a retry, a dead letter."""
        first, second, third = await _fetch(one, TOPIC, AGENT)
        follower = event("follower", topic="next", dedupe=True)
        await one.settle_many(
            [
                done(first, result=record("given"), publications=(follower,), seconds=0.5),
                done(second, retry=Retry(after=0.01, attempts=1)),
                done(third, dead=dead(), result=record("t1", failed=True)),
            ]
        )
        await one.settle_many([done(entry) for entry in await _fetch(one, TOPIC, "second")])
        self.look()
        (again,) = (await next_fetch(one, Want(TOPIC, AGENT, 9))).entries
        assert again.attempts == 1
        await one.settle_many([done(again)])
        late: list[Entry] = []
        while len(late) < 2:
            late += await _fetch(one, "later", AGENT)
        await one.settle_many([done(entry) for entry in late])

    async def _keep_order(self, one: RedisBackend, two: RedisBackend, calls: Calls) -> None:
        """A gate, a key, a hand-over, a withdrawal, and a hand-over whose reply was lost."""
        want = Want("ordered", AGENT, 1, is_ordered=True)
        await one.publish(numbered(5, "ordered"))
        (mine,) = (await one.fetch([want])).entries
        assert (await two.fetch([want])).entries == []
        self.look()
        assert await one.claim([(mine.key, "a")]) == [True]
        (theirs,) = (await next_fetch(two, want)).entries
        assert await two.claim([(theirs.key, "a")]) == [False]
        self.look()
        (handed,) = (await one.fetch([want])).entries
        assert (
            await calls.script(
                "recover", [calls.client, 0, mine.key.consumer, [["ordered", AGENT, [mine.key.entry_id]]]]
            )
            == 1
        )
        (again,) = (await one.fetch([want])).entries
        assert again.key == handed.key
        await one.withdraw([("ordered", AGENT)])
        (last,) = (await next_fetch(two, want)).entries
        assert await two.claim([(last.key, "a")]) == [False]
        self.look()
        await one.settle_many([done(mine), done(again)])
        await two.release([last.key])
        for _ in range(3):
            rest = (await next_fetch(two, want)).entries
            assert await two.claim([(entry.key, "b") for entry in rest]) == [True]
            await two.settle_many([done(entry) for entry in rest])

    async def _limit(self, one: RedisBackend) -> None:
        await one.publish(numbered(2, "limited"))
        want = Want("limited", AGENT, 9, limit=1)
        (first,) = (await one.fetch([want])).entries
        self.look()
        await one.settle_many([done(first)])
        await one.settle_many([done(entry) for entry in (await one.fetch([want])).entries])

    async def _wait(self, one: RedisBackend) -> None:
        """For a stream and then for two, for an entry, for a bell, and for the results of two tasks."""
        position = (await one.fetch([Want(TOPIC, AGENT, 0), Want("other", AGENT, 0)])).position
        with trio.move_on_after(0.1):
            await one.wait({TOPIC: position})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.wait, {TOPIC: position, "other": position})
            await trio.sleep(0.05)
            await one.publish([event("waking", topic="other")])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.wait_results, "nothing", ())
            nursery.start_soon(one.wait_results, "waking", ())
            await trio.sleep(0.05)
            await one.settle_many([done(entry, result=record("waking")) for entry in await _fetch(one, "other", AGENT)])
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    async def _replay(self, one: RedisBackend) -> None:
        assert await one.replay_dead(TOPIC, DeadFilter(agent=AGENT), limit=9) == 1
        self.look()
        (again,) = await _fetch(one, TOPIC, AGENT)
        await one.settle_many([done(again, dead=dead())])
        assert len(await one.dead_letters(TOPIC, limit=9)) == 1
        self.look()
        assert await one.purge_dead(TOPIC, DeadFilter(), limit=9) == 1

    async def _take_over(self, one: RedisBackend, calls: Calls) -> None:
        """A consumer that nobody renews, and what it held."""
        record = '{"consumer":"ghost","pid":1,"host":"h","started_at":1.0}'
        await one.publish(numbered(1, "other"))
        await calls.script("enter", ["ghost", record, GHOST_LEASE])
        await calls.script("fetch", [calls.client, 1 << 40, "ghost", GHOST_LEASE, [["other", AGENT, 1, -1, 0]]])
        self.look()
        (orphan,) = (await next_fetch(one, Want("other", AGENT, 9))).entries
        assert orphan.crashes == 1
        await one.release([orphan.key])
        await one.settle_many([done(entry) for entry in await _fetch(one, "other", AGENT)])

    async def _pause(self, one: RedisBackend) -> None:
        await one.pause(AGENT)
        assert await one.paused() == {AGENT}
        self.look()
        await one.resume(AGENT)

    async def _inspect(self, one: RedisBackend) -> None:
        assert {finding.status for finding in await one.diagnose()} <= {"ok", "warning", "error"}
        assert len(await one.streams()) >= 5
        assert len(await one.list_agents()) == 1
        assert await one.config() == {"kept": 1}
        assert any(counts.completed for counts in await one.metrics())
        assert len(await one.get_results("given")) == 1
        self.look()


async def _fetch(backend: Backend, topic: str, agent: str) -> list[Entry]:
    return (await next_fetch(backend, Want(topic, agent, 9))).entries
