"""A clock that is put forward, or a machine that sleeps: what is due by the store's clock is delivered soon."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import Agent, EventBus, EventEnvelope, RetryAfter, open_supervisor
from omniactors.agents import router
from omniactors.agents.runtime import AgentRuntime
from omniactors.operations.tasks import TaskOperations
from omniactors.streams.envelope import WireEvent, new_id
from omniactors.streams.redis.backend import RedisBackend
from omniactors.streams.sqlite.backend import SqliteBackend
from tests.agents.support import until
from tests.redis_server import fresh_prefix

if TYPE_CHECKING:
    from omniactors.streams.backend import Backend
    from tests.redis_server import RedisServer

HOUR = 3600


class SqliteHours:
    """An embedded store whose clock can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.backend: Backend = SqliteBackend(None, clock=lambda: time.time() + self.ahead)

    def pass_hours(self, hours: int) -> None:
        self.ahead += hours * HOUR


class RedisHours:
    """On a server whose clock nobody can set: all that waits for it is moved towards it instead."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._prefix = fresh_prefix()
        self.backend: Backend = RedisBackend(server.url, prefix=self._prefix)

    def pass_hours(self, hours: int) -> None:
        with self._server.sync() as client:
            for key in client.keys(f"{self._prefix}*"):
                if client.type(key) == b"zset":
                    for member in client.zrange(key, 0, -1):
                        client.zincrby(key, -hours * HOUR * 1000, member)


@pytest.fixture(params=["sqlite", "redis"])
def hours(request: pytest.FixtureRequest) -> SqliteHours | RedisHours:
    return SqliteHours() if request.param == "sqlite" else RedisHours(request.getfixturevalue("redis_server"))


class Patient(Agent, topic="patient", name="patient"):
    seen: list[tuple[Any, int]]

    async def handle(self, event: EventEnvelope[str]) -> None:
        self.seen.append((event.payload.content, event.delivery_attempts))
        if event.payload.content == "again" and event.delivery_attempts == 1:
            raise RetryAfter(HOUR)


@pytest.mark.parametrize("content", ["again", "later"])
async def test_a_delay_and_a_retry_end_when_the_clock_has_come_to_their_time(
    hours: SqliteHours | RedisHours, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "RECHECK", 0.1)
    Patient.seen = []
    bus = EventBus()
    runtime = AgentRuntime(hours.backend, bus, grace=5.0, result_ttl=60.0, entry_limit=1 << 20)
    tasks = TaskOperations(hours.backend, bus, entry_limit=1 << 20)
    runtime.add(Patient, (), {})
    with trio.fail_after(30):
        async with open_supervisor(runtime.tree(), emit=runtime.notice):
            runtime.take_events()
            await tasks.publish_wire(_event("now"), is_new=True)
            await tasks.publish_wire(_event(content), is_new=True, delay=HOUR if content == "later" else None)
            expected = [("now", 1), ("again", 1)] if content == "again" else [("now", 1)]
            await until(lambda: Patient.seen == expected)
            await trio.sleep(0.3)
            assert Patient.seen == expected
            hours.pass_hours(2)
            await until(lambda: len(Patient.seen) > len(expected))
    assert Patient.seen[len(expected) :] == [(content, 2 if content == "again" else 1)]
    await hours.backend.close()


def _event(content: str) -> WireEvent[str]:
    return WireEvent(content=content, topic="patient", task_id=new_id(), created_at=time.time())
