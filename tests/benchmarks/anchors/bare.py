"""The least that could do the work on Redis: hiredis, msgspec and one trio connection, written by hand.

Commands of a batch go out in one send and their replies are read in one go. Nothing is done twice, checked,
recovered, deduplicated, or shared with another process.
"""

from __future__ import annotations

import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import hiredis
import msgspec
import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

BATCH = 100
FILL = 1_000
DAY = 86_400_000
"""Milliseconds that a result is kept."""
STREAM = "omni-stream:square"
GROUP = "group:square:square"


class Task(msgspec.Struct):
    """What is in an entry: the fields of ours."""

    content: int
    task_id: str
    topic: str = "square"
    webhook: str | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    source: str | None = None
    tenant_id: str | None = None
    delivery_attempts: int = 1
    created_at: float = 0.0


class Result(msgspec.Struct):
    """What is kept of a task."""

    task_id: str
    result: int
    topic: str = "square"
    agent: str = "square"
    status: str = "success"
    processed_at: float = 0.0


class Connection:
    """Packed commands out, parsed replies in."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._reader = hiredis.Reader()

    async def pipeline(self, commands: Iterable[tuple[str | bytes | int, ...]]) -> list[Any]:
        """Send the commands together and give their replies, in order."""
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type,unused-ignore]
        await self._stream.send_all(b"".join(packed))
        return [await self.reply() for _ in packed]

    async def reply(self) -> Any:
        """The next reply; raises what the server sent as an error."""
        while (reply := self._reader.gets()) is False:
            self._reader.feed(await self._stream.receive_some())
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    """A connection to the Redis at `url`, host and port only."""
    parts = urlsplit(url)
    stream = await trio.open_tcp_stream(parts.hostname or "localhost", parts.port or 6379)
    stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
    async with stream:
        yield Connection(stream)


def entry(number: int) -> tuple[str | bytes | int, ...]:
    """The command that publishes one task."""
    body = msgspec.json.encode(Task(content=number, task_id=str(uuid.uuid4()), created_at=time.time()))
    return ("XADD", STREAM, "*", "data", body)


async def pipeline(url: str, tasks: int) -> float:
    """Tasks per second: all published, then each read, handled, its result kept, acknowledged and deleted."""
    decoder = msgspec.json.Decoder(Task)
    encoder = msgspec.json.Encoder()
    async with connect(url) as connection:
        await connection.pipeline([("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM")])
        begun = time.perf_counter()
        for start in range(0, tasks, BATCH):
            await connection.pipeline(entry(number) for number in range(start, start + BATCH))
        for _ in range(0, tasks, BATCH):
            read = ("XREADGROUP", "GROUP", GROUP, "one", "COUNT", BATCH, "STREAMS", STREAM, ">")
            [[[_, entries]]] = await connection.pipeline([read])
            commands: list[tuple[str | bytes | int, ...]] = []
            for entry_id, (_, body) in entries:
                task = decoder.decode(body)
                result = Result(task.task_id, await square(task.content), processed_at=time.time())
                commands += (
                    ("SET", f"omni:result:{task.task_id}", encoder.encode(result), "PX", DAY),
                    ("XACK", STREAM, GROUP, entry_id),
                    ("XDEL", STREAM, entry_id),
                )
            await connection.pipeline(commands)
        return tasks / (time.perf_counter() - begun)


async def square(number: int) -> int:
    """The handler."""
    return number**2


class Line:
    """One connection for many tasks: what they have ready when it is free goes out together."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ready: list[tuple[trio.lowlevel.Task, tuple[str | bytes | int, ...]]] = []

    async def call(self, command: tuple[str | bytes | int, ...]) -> Any:
        """The reply to a command; the caller is not cancelled."""
        self._ready.append((trio.lowlevel.current_task(), command))
        return await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    async def run(self) -> None:
        """Carry the commands until cancelled; one of the tasks is always about to call."""
        while True:
            await trio.lowlevel.checkpoint()
            ready, self._ready = self._ready, []
            if ready:
                replies = await self._connection.pipeline(command for _, command in ready)
                for (task, _), reply in zip(ready, replies, strict=True):
                    trio.lowlevel.reschedule(task, outcome.Value(reply))


async def publish(url: str, *, publishers: int, tasks: int) -> float:
    """Publishes per second by so many trio tasks, each one waiting for its own; a single one needs no `Line`."""

    async def some(call: Callable[[tuple[str | bytes | int, ...]], Awaitable[Any]]) -> None:
        for number in range(tasks // publishers):
            await call(entry(number))

    async with connect(url) as connection:
        begun = time.perf_counter()
        if publishers == 1:
            await some(lambda command: connection.pipeline([command]))
            return tasks / (time.perf_counter() - begun)
        line = Line(connection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            async with trio.open_nursery() as publishing:
                for _ in range(publishers):
                    publishing.start_soon(some, line.call)
            elapsed = time.perf_counter() - begun
            nursery.cancel_scope.cancel()
        return tasks / elapsed


async def fill(url: str, *, tasks: int) -> None:
    """Publish so many as fast as can be."""
    async with connect(url) as connection:
        for start in range(0, tasks, FILL):
            await connection.pipeline(entry(number) for number in range(start, min(start + FILL, tasks)))
