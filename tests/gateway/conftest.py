"""A gateway on a free port of this machine, and clients for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from omniactors.events.bus import EventBus
from omniactors.events.event import Event
from omniactors.gateway.config import GatewayAddress, GatewayConfig
from omniactors.gateway.server import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.routing import BaseRoute

Frame = dict[str, Any]
HANDSHAKE = (
    b"GET /ws?types=task.* HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
"""The head of a request that is upgraded, for clients that do nothing as they should."""
PATIENCE = 10.0
"""Seconds that anything here may take on a busy machine; these are real sockets."""


@dataclass(eq=False)
class Client:
    """A watcher that reads frames."""

    socket: WebSocketConnection
    seen: list[Frame] = field(default_factory=list)

    async def send(self, **frame: object) -> None:
        await self.socket.send_message(json.dumps(frame))

    async def frame(self) -> Frame:
        with trio.fail_after(PATIENCE):
            frame: Frame = json.loads(await self.socket.get_message())
        self.seen.append(frame)
        return frame

    async def expect(self, kind: str) -> Frame:
        """The next frame, which must be of this type."""
        frame = await self.frame()
        assert frame["t"] == kind, frame
        return frame

    async def events(self, count: int) -> list[Frame]:
        """The next `count` events, from as many `ev` frames as they come in; nothing else may come between."""
        found: list[Frame] = []
        while len(found) < count:
            found += (await self.expect("ev"))["e"]
        return found


@dataclass(eq=False)
class Running:
    """A gateway that serves `bus` at `address`."""

    bus: EventBus
    address: GatewayAddress

    def publish(self, count: int, *, event_type: str = "task.started", run_id: str = "A") -> None:
        for number in range(count):
            self.bus.publish(Event(run_id=run_id, event_type=event_type, data={"n": number}))

    def http(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.address.url, trust_env=False, timeout=PATIENCE, **options)

    def url(self, query: str = "") -> str:
        return f"ws://127.0.0.1:{self.address.port}/ws{query}"

    @asynccontextmanager
    async def watch(
        self, query: str = "", *, origin: str | None = None, token: str | None = None, subprotocols: Sequence[str] = ()
    ) -> AsyncIterator[Client]:
        headers = [(b"origin", origin.encode())] if origin else []
        headers += [(b"authorization", f"Bearer {token}".encode())] if token else []
        # Not open_websocket: it leaves its own socket open when the other side was the first to close.
        stream = await self.connect()
        try:
            async with trio.open_nursery() as nursery:
                authority = f"127.0.0.1:{self.address.port}"
                socket = await wrap_client_stream(
                    nursery, stream, authority, f"/ws{query}", subprotocols=list(subprotocols), extra_headers=headers
                )
                yield Client(socket)
                with trio.move_on_after(1):
                    await socket.aclose()
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(stream)

    async def refused(self, query: str = "", **headers: str) -> tuple[int, str]:
        """Ask for a WebSocket that is refused: the status, and the sentence.

        With httpx, as trio-websocket's client leaves its socket open after a refusal.
        """
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        async with self.http(headers=upgrade | headers) as client:
            answer = await client.get(f"/ws{query}")
            return answer.status_code, str(answer.json()["error"])

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.address.port)


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def start() -> Start:
    """Makes a gateway for the length of a block, given what `serve` takes."""

    @asynccontextmanager
    async def started(
        *,
        token: str | None = None,
        host: str = "127.0.0.1",
        routes: Sequence[BaseRoute] = (),
        config: GatewayConfig | None = None,
        bus: EventBus | None = None,
    ) -> AsyncIterator[Running]:
        served = bus or EventBus()

        async def serving(*, task_status: trio.TaskStatus[GatewayAddress]) -> None:
            await serve(
                served, host=host, token=token, routes=routes, config=config or GatewayConfig(), task_status=task_status
            )

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                yield Running(served, await nursery.start(serving))
                nursery.cancel_scope.cancel()

    return started
