"""Servers that are not what we look for: each counts who comes, and answers in its own way."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 11\r\nConnection: close\r\n\r\nBad Request"

OLD_INFO = b"# Server\r\nredis_version:5.0.14\r\nredis_mode:standalone\r\nprocess_id:1\r\n"


class Stranger:
    """A listening server; `visits` counts connections."""

    def __init__(self, answer: Callable[[trio.SocketStream, bytes], Awaitable[None]]) -> None:
        self.visits = 0
        self.port = 0
        self._answer = answer

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen on a free port until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._receive, listeners)

    async def _receive(self, stream: trio.SocketStream) -> None:
        self.visits += 1
        async with stream:
            try:
                async for data in stream:
                    await self._answer(stream, bytes(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return


async def _say_nothing(stream: trio.SocketStream, data: bytes) -> None:
    await trio.lowlevel.checkpoint()


async def _speak_http(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(HTTP)
    await stream.aclose()


async def _be_old(stream: trio.SocketStream, data: bytes) -> None:
    """A Redis 5: it knows no HELLO and few of our commands, and tells its version."""
    for command in _commands(data):
        match command.upper():
            case b"INFO":
                await stream.send_all(b"$%d\r\n%s\r\n" % (len(OLD_INFO), OLD_INFO))
            case b"PING":
                await stream.send_all(b"+PONG\r\n")
            case b"AUTH" | b"CLIENT" | b"SELECT":
                await stream.send_all(b"+OK\r\n")
            case b"COMMAND":
                await stream.send_all(b"*1\r\n*-1\r\n")
            case _:
                await stream.send_all(b"-ERR unknown command `%s`, with args beginning with: \r\n" % command)


def _commands(data: bytes) -> list[bytes]:
    """The first word of each request in `data`, which begins with a whole one."""
    lines = data.split(b"\r\n")
    return [lines[number + 2] for number, line in enumerate(lines[:-2]) if line.startswith(b"*")]


@asynccontextmanager
async def open_stranger(kind: str) -> AsyncIterator[Stranger]:
    """A server of a kind: "mute", "http" or "old"."""
    answer = {"mute": _say_nothing, "http": _speak_http, "old": _be_old}[kind]
    stranger = Stranger(answer)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(stranger.serve))
        yield stranger
        nursery.cancel_scope.cancel()
