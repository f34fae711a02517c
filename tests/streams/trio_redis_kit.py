"""What the tests of TrioRedis need beside a real server: servers that follow a script, and what stands between."""

from __future__ import annotations

import contextlib
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trustme

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

CHUNK = 65536

BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


@asynccontextmanager
async def scripted_server(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A server on a free loopback port that does with each connection what `handler` does; gives the port."""

    async def serve_one(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(*BROKEN):
                await handler(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve_one, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def pump(source: trio.abc.ReceiveStream, target: trio.abc.SendStream, limit: int | None = None) -> None:
    """Pass bytes on until the end or, with a limit, until so many have passed."""
    left = limit
    while left is None or left > 0:
        data = await source.receive_some(CHUNK)
        if not data:
            return
        if left is not None:
            data = data[:left]
            left -= len(data)
        await target.send_all(data)


@asynccontextmanager
async def cutting_proxy(
    port: int, *, requests: int | None = None, replies: int | None = None
) -> AsyncIterator[tuple[int, list[int]]]:
    """A proxy to `port` that cuts its first connection after so many bytes; gives its port and the cuts made."""
    cuts: list[int] = []

    async def relay(client: trio.SocketStream) -> None:
        is_first = not cuts
        cuts.append(0)

        async def one_way(
            source: trio.SocketStream, target: trio.SocketStream, limit: int | None, scope: trio.CancelScope
        ) -> None:
            with contextlib.suppress(*BROKEN):
                await pump(source, target, limit if is_first else None)
            scope.cancel()

        async with await trio.open_tcp_stream("127.0.0.1", port) as server, trio.open_nursery() as nursery:
            nursery.start_soon(one_way, client, server, requests, nursery.cancel_scope)
            nursery.start_soon(one_way, server, client, replies, nursery.cancel_scope)

    async with scripted_server(relay) as own_port:
        yield own_port, cuts


@asynccontextmanager
async def tls_forwarder(context: ssl.SSLContext, port: int) -> AsyncIterator[int]:
    """A port that speaks TLS and passes everything on to `port` in the clear."""

    async def relay(client: trio.SocketStream) -> None:
        secure = trio.SSLStream(client, context, server_side=True, https_compatible=True)
        try:
            await secure.do_handshake()
        except (*BROKEN, OSError):
            return

        async def one_way(source: trio.abc.ReceiveStream, target: trio.abc.SendStream, scope: trio.CancelScope) -> None:
            with contextlib.suppress(*BROKEN):
                await pump(source, target)
            scope.cancel()

        async with await trio.open_tcp_stream("127.0.0.1", port) as server, trio.open_nursery() as nursery:
            nursery.start_soon(one_way, secure, server, nursery.cancel_scope)
            nursery.start_soon(one_way, server, secure, nursery.cancel_scope)

    async with scripted_server(relay) as own_port:
        yield own_port


async def answer_handshake(stream: trio.SocketStream) -> None:
    """Answer CLIENT ID, the whole handshake of a client without password, database and name."""
    data = b""
    while not data.endswith(b"$2\r\nID\r\n"):
        data += await stream.receive_some(CHUNK)
    await stream.send_all(b":7\r\n")


class Certificates:
    """An authority, a server's context and a client's certificate, as files."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self.server)
        authority.configure_trust(self.server)
        self.authority = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        mine = authority.issue_cert("client.example")
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        mine.cert_chain_pems[0].write_to_path(str(self.certificate))
        mine.private_key_pem.write_to_path(str(self.key))
