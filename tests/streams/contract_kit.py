"""What the contract's tests are made of: stores, events, and short words for what every test does."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import msgspec
import pytest
import trio

from omniactors.streams.backend import Backend, Entry, Fetched, GroupInfo, StreamInfo, Want
from omniactors.streams.settlement import Dead, DeadReason, ErrorInfo, Publication, ResultRecord, Settlement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

TOPIC, AGENT = "work", "worker"
LIMIT = 10.0
"""Seconds of real time after which a wait for another thread, process or lease has failed."""


class Store(Protocol):
    """A place for data; each `open()` gives another backend over it."""

    def open(self, *, stream_limit: int | None = None) -> Backend: ...


@pytest.fixture
async def backend(store: Store) -> AsyncIterator[Backend]:
    backend = store.open()
    with trio.fail_after(6 * LIMIT):
        yield backend
    await backend.close()


@pytest.fixture
async def other(store: Store) -> AsyncIterator[Backend]:
    backend = store.open()
    yield backend
    await backend.close()


@asynccontextmanager
async def serving(backend: Backend) -> AsyncIterator[str]:
    """The backend is a consumer inside the block."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(backend.serve)
        nursery.cancel_scope.cancel()


# -- values -------------------------------------------------------------------------------------


def event(task_id: str, *, topic: str = TOPIC, body: bytes = b"{}", dedupe: bool = False) -> Publication:
    return Publication(topic=topic, task_id=task_id, body=body, dedupe=dedupe)


def numbered(count: int, topic: str = TOPIC, *, start: int = 0) -> list[Publication]:
    return [event(f"t{number}", topic=topic, body=b'{"n":%d}' % number) for number in range(start, start + count)]


def numbers(entries: list[Entry]) -> list[int]:
    return [msgspec.json.decode(entry.body)["n"] for entry in entries]


def record(task_id: str, *, agent: str = AGENT, result: object = None, failed: bool = False) -> ResultRecord:
    return ResultRecord(
        task_id=task_id,
        topic=TOPIC,
        agent=agent,
        status="failed" if failed else "success",
        result=result,
        error="it broke" if failed else None,
    )


def done(entry: Entry, **parts: object) -> Settlement:
    return msgspec.structs.replace(Settlement(key=entry.key), **parts)


def dead(reason: DeadReason = "rejected", error_type: str = "E") -> Dead:
    return Dead(reason=reason, error=ErrorInfo(type=error_type, message="it broke"), attempts=1)


# -- calls --------------------------------------------------------------------------------------


async def fetch(backend: Backend, credit: int = 100, *, topic: str = TOPIC, agent: str = AGENT) -> list[Entry]:
    return (await backend.fetch([Want(topic, agent, credit)])).entries


async def fetch_ordered(backend: Backend, credit: int = 100) -> list[Entry]:
    return (await backend.fetch([Want(TOPIC, AGENT, credit, is_ordered=True)])).entries


async def next_fetch(backend: Backend, *wants: Want) -> Fetched:
    """The next fetch that takes something, as a router does it: by `wait` and `next_due`."""
    with trio.fail_after(LIMIT):
        while True:
            fetched = await backend.fetch(wants)
            if fetched.entries:
                return fetched
            due = math.inf if fetched.next_due is None else fetched.next_due
            with trio.move_on_after(0 if fetched.has_more else due):
                await backend.wait({want.topic: fetched.position for want in wants})


async def fetch_when_due(backend: Backend, agent: str = AGENT) -> Fetched:
    """The next fetch of this agent that takes something."""
    return await next_fetch(backend, Want(TOPIC, agent, 100))


async def settle_all(backend: Backend, entries: list[Entry], **parts: object) -> None:
    assert await backend.settle_many([done(entry, **parts) for entry in entries]) == [True] * len(entries)


async def bury(backend: Backend, *, agent: str = AGENT, topic: str = TOPIC, as_dead: Dead | None = None) -> list[Entry]:
    """Take all there is for the agent and have it die."""
    entries = await fetch(backend, agent=agent, topic=topic)
    await settle_all(backend, entries, dead=as_dead or dead())
    return entries


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition, which another thread or process brings about, holds."""
    with trio.fail_after(LIMIT):
        while not condition():  # noqa: ASYNC110 -- no event of ours tells what others have done
            await trio.sleep(0.01)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """As `until`, for a condition that asks a backend."""
    with trio.fail_after(LIMIT):
        while not await condition():  # noqa: ASYNC110 -- as in `until`
            await trio.sleep(0.01)


async def stream(backend: Backend, topic: str = TOPIC) -> StreamInfo:
    """The numbers of one stream; all zero when there is none."""
    found = (info for info in await backend.streams() if info.topic == topic)
    return next(found, StreamInfo(topic=topic, length=0, groups=[]))


async def group(backend: Backend, agent: str = AGENT) -> GroupInfo:
    return next(group for group in (await stream(backend)).groups if group.agent == agent)


async def length(backend: Backend, topic: str = TOPIC) -> int:
    return (await stream(backend, topic)).length
