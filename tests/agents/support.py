"""What the agents' tests share: a system in memory, and quick retries."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import trio

from omniactors import Agent, AgentConfig, Backoff, Event, EventBus, OmniActors, RetryPolicy, Settings
from omniactors.settings import MemoryUrl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

QUICK = RetryPolicy(max_attempts=3, backoff=Backoff(initial=0.01, maximum=0.05))


def in_memory(*, grace: float = 5.0) -> OmniActors:
    return OmniActors(settings=Settings(backend=MemoryUrl(), grace=grace))


@asynccontextmanager
async def running(*agents: type[Agent] | AgentConfig, grace: float = 5.0) -> AsyncIterator[OmniActors]:
    """A running system with these agents; a test that hangs fails after ten seconds."""
    omni = in_memory(grace=grace)
    for agent in agents:
        omni.add(agent)
    with trio.fail_after(10):
        async with omni:
            yield omni
        await omni.shutdown()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that a real thread brings about."""
    while not condition():  # noqa: ASYNC110 -- there is no event to wait for, another thread is at work
        await trio.sleep(0.001)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that only the store can tell."""
    while not await condition():  # noqa: ASYNC110 -- the store is asked, it tells nobody
        await trio.sleep(0.002)


class HasBus(Protocol):
    """A system, or a part of one with a bus of its own."""

    bus: EventBus


class Watcher:
    """Collects the events of a bus, from now on."""

    def __init__(self, omni: HasBus, *types: str) -> None:
        self._subscription = omni.bus.subscribe(types=list(types))
        self.seen: list[Event] = []

    async def run(self) -> None:
        async for event in self._subscription:
            self.seen.append(event)

    async def wait_for(self, event_type: str, count: int = 1) -> list[Event]:
        await until(lambda: len(self.of(event_type)) >= count)
        return self.of(event_type)

    def of(self, event_type: str) -> list[Event]:
        return [event for event in self.seen if event.event_type == event_type]


@asynccontextmanager
async def watching(omni: HasBus, *types: str) -> AsyncIterator[Watcher]:
    watcher = Watcher(omni, *types)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        yield watcher
        nursery.cancel_scope.cancel()


Message = dict[str, Any]
