"""Lifeline: the socket between a worker process and its parent; what closes tells the other that one is gone.

The worker says once that it is ready, the parent may tell it to drop the grace time of its stop. The
kernel closes the socket with the process, however that ends, so no worker outlives its parent.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import msgspec
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HURRY = b"!"
"""The one thing that a parent says: stop at once."""

LIMIT = 64 * 1024
"""Bytes that a worker's word may have: names of many agents fit."""


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says when its agents are ready. `settings` is the line for people, `grace` in seconds."""

    pid: int
    origin: str
    store: str
    settings: str
    agents: list[str]
    gateway: str | None
    grace: float


def longest_stop(grace: float) -> float:
    """Seconds after which a stop has gone wrong: agents, then settlements have the grace time, then the store."""
    return 2 * grace + 15.0


class ParentEnd:
    """The parent's end; `worker` is the file descriptor to hand to the process, and to close here afterwards."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    @property
    def worker(self) -> int:
        """The worker's end, until `handed_over`."""
        return self._theirs.fileno()

    def handed_over(self) -> None:
        """The process has its end: what is open here would hide its death."""
        self._theirs.close()

    async def receive_ready(self) -> Ready | None:
        """The worker's word; None when it ended before that."""
        line = bytearray()
        try:
            while not line.endswith(b"\n") and len(line) < LIMIT:
                part = await self._stream.receive_some()
                if not part:
                    return None
                line += part
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return None
        return msgspec.json.decode(line, type=Ready)

    async def hurry(self) -> None:
        """Tell the worker to stop at once; one that is gone does not mind."""
        try:
            await self._stream.send_all(HURRY)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            return

    def close(self) -> None:
        """Let go of both ends."""
        self._theirs.close()
        self._stream.socket.close()


class WorkerEnd:
    """The worker's end, of the file descriptor that it was started with; raises OSError when that is no socket."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._stream: trio.SocketStream | None = None

    async def say_ready(self, ready: Ready) -> None:
        """Tell the parent; one that is gone is noticed by `orders`."""
        try:
            await self._open().send_all(msgspec.json.encode(ready) + b"\n")
        except trio.BrokenResourceError:
            return

    async def hurries(self) -> AsyncIterator[None]:
        """Each time the parent says so, until it is gone."""
        stream = self._open()
        try:
            async for _ in stream:
                yield
        except trio.BrokenResourceError:
            return

    def guard(self, seconds: float) -> None:
        """End this process, whatever blocks it, `seconds` after its parent has gone."""
        threading.Thread(target=_outlive, args=(self._socket.fileno(), seconds), daemon=True).start()

    def close(self) -> None:
        """Let go of it, when this process ends anyway."""
        if self._stream is None:
            self._socket.close()
        else:
            self._stream.socket.close()

    def _open(self) -> trio.SocketStream:
        if self._stream is None:
            self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(self._socket))
        return self._stream


def _outlive(descriptor: int, seconds: float) -> None:
    """Wait for the other end to close and then a little longer; a thread, since the loop may be blocked."""
    poll = select.poll()
    poll.register(descriptor, select.POLLHUP)
    poll.poll()
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)
