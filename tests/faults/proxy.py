"""A TCP proxy that does to a connection what networks do: delay, throttle, stall, cut at a byte, close in bad ways.

    async with open_proxy(port) as proxy:      # connect to proxy.port instead of port
        proxy.weather = Weather(latency=0.05)
        cut = proxy.cut_after("request", 17, how="reset")
        await cut.happened.wait()

What is seeded is chance alone; the order of things is the network's.
"""

from __future__ import annotations

import random
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Direction = Literal["request", "reply"]
Ending = Literal["reset", "close", "half", "slow"]
"""`reset` is RST to both sides, `close` is FIN to both, `half` is FIN in the direction that was cut only, and
`slow` is a FIN to both that comes SLOW_CLOSE later, while nothing passes."""

Flow = Literal["forward", "swallow", "stall"]
"""`swallow` reads and throws away, `stall` does not even read."""

CHUNK = 65_536

SLOW_CLOSE = 0.1
"""Seconds between the last byte that passes and a slow FIN."""

NO_LINGER = struct.pack("ii", 1, 0)
"""SO_LINGER on, for 0 seconds: a close then sends RST."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How bytes travel, in both directions. Times in seconds, bandwidth in bytes per second."""

    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: float | None = None
    flow: Flow = "forward"
    chunk: int = CHUNK
    """At most so many bytes are passed on at a time: 1 tears every frame apart."""


@dataclass(eq=False)
class Cut:
    """One cut to come: when `left` more bytes went in its direction, over all connections together."""

    direction: Direction
    left: int
    how: Ending
    happened: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False)
class Link:
    """One connection: the client's end and the server's."""

    client: trio.SocketStream
    server: trio.SocketStream

    def reset(self) -> None:
        """End it with RST on both sides, at once."""
        for stream in (self.client, self.server):
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            stream.socket.close()

    def close(self) -> None:
        """End it with FIN on both sides."""
        self.client.socket.close()
        self.server.socket.close()


class Proxy:
    """See the module. `accepted` counts connections, `passed` the bytes of each direction."""

    def __init__(self, target: int, *, seed: int = 0) -> None:
        self.target = target
        self.weather = Weather()
        self.port = 0
        self.accepted = 0
        self.passed: dict[Direction, int] = {"request": 0, "reply": 0}
        self._random = random.Random(seed)
        self._links: set[Link] = set()
        self._cut: Cut | None = None
        self._changed = trio.Event()

    @property
    def links(self) -> int:
        """How many connections are open."""
        return len(self._links)

    def change(self, weather: Weather) -> None:
        """Set the weather, also for connections that stall at this moment."""
        self.weather = weather
        self._changed.set()
        self._changed = trio.Event()

    def cut_after(self, direction: Direction, count: int, *, how: Ending = "reset") -> Cut:
        """Cut the connection over which the byte after the next `count` in that direction would go; once."""
        self._cut = Cut(direction, count, how)
        return self._cut

    def forget_cut(self) -> None:
        """Take back a cut that has not happened."""
        self._cut = None

    def cut_all(self, *, how: Literal["reset", "close"] = "reset") -> int:
        """Cut every connection now; returns how many there were."""
        links = list(self._links)
        for link in links:
            self._end(link, how)
        return len(links)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on a free port of the loopback until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._accept, listeners)
            task_status.started()

    async def _accept(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:  # as a server that is down: whoever connected is cut off
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            await trio.aclose_forcefully(client)
            return
        link = Link(client, server)
        self._links.add(link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, link, "request", nursery.cancel_scope)
                nursery.start_soon(self._pump, link, "reply", nursery.cancel_scope)
        finally:
            self._end(link, "close")

    async def _pump(self, link: Link, direction: Direction, scope: trio.CancelScope) -> None:
        source, sink = (link.client, link.server) if direction == "request" else (link.server, link.client)
        try:
            while True:
                await self._flowing()
                data = await source.receive_some(min(self.weather.chunk, CHUNK))
                if not data:
                    await sink.send_eof()
                    return
                await self._delay(len(data))
                # It may have begun to stall while it waited for these bytes.
                await self._flowing()
                if self.weather.flow == "swallow":
                    continue
                if not await self._pass_on(link, direction, sink, data):
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            scope.cancel()

    async def _pass_on(self, link: Link, direction: Direction, sink: trio.SocketStream, data: bytes) -> bool:
        """Send the bytes, up to the cut if there is one among them; whether the direction goes on."""
        cut = self._cut
        if cut is None or cut.direction != direction or len(data) <= cut.left:
            if cut is not None and cut.direction == direction:
                cut.left -= len(data)
            self.passed[direction] += len(data)
            await sink.send_all(data)
            return True
        self._cut = None
        if cut.left:
            self.passed[direction] += cut.left
            await sink.send_all(data[: cut.left])
            # RST overtakes bytes that the other side has not read: give it the time to.
            await trio.sleep(0.002)
        match cut.how:
            case "half":
                await sink.send_eof()
            case "slow":
                await trio.sleep(SLOW_CLOSE)
                self._end(link, "close")
            case how:
                self._end(link, how)
        cut.happened.set()
        return False

    async def _flowing(self) -> None:
        while self.weather.flow == "stall":
            await self._changed.wait()

    async def _delay(self, size: int) -> None:
        weather = self.weather
        seconds = weather.latency + self._random.uniform(0, weather.jitter)
        if weather.bandwidth is not None:
            seconds += size / weather.bandwidth
        if seconds:
            await trio.sleep(seconds)

    def _end(self, link: Link, how: Literal["reset", "close"]) -> None:
        if link in self._links:
            self._links.discard(link)
            if how == "reset":
                link.reset()
            else:
                link.close()


@asynccontextmanager
async def open_proxy(target: int, *, seed: int = 0) -> AsyncIterator[Proxy]:
    """A running proxy before the local port `target`."""
    proxy = Proxy(target, seed=seed)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.serve)
        yield proxy
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_mute_port() -> AsyncIterator[int]:
    """A port that accepts connections, in the kernel, and on which nobody ever answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


def closed_port() -> int:
    """A port of the loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
