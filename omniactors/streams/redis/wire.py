"""A connected socket whose reads and writes never wait: waiting is apart, so a cancel never cuts one in two.

What the kernel does not take at once is kept here and leaves, before anything else, with the next flush.
TLS is done on bytes in memory (`ssl.MemoryBIO`), so it holds for both.
"""

from __future__ import annotations

import ssl
import weakref
from typing import TYPE_CHECKING

import trio

from omniactors.streams.runs import PerRun

if TYPE_CHECKING:
    import socket

CHUNK = 64 * 1024
"""Bytes asked of the kernel at once; more would be mapped and unmapped by the allocator at each read."""


class Wire:
    """A plain stream socket. Methods raise OSError when the connection is broken, waits ClosedResourceError too."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self._socket = sock
        self._rest = memoryview(b"")
        _open().add(self)

    def __del__(self) -> None:
        # Publishing needs no shutdown: what nobody uses any more is closed without a word.
        self._socket.close()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._socket.fileno() < 0

    @property
    def unsent(self) -> int:
        """At least so many of the last bytes given to `write` have certainly not left."""
        return len(self._rest)

    @property
    def is_flushed(self) -> bool:
        """Whether all that was written has left."""
        return not self._rest

    def write(self, data: bytes) -> None:
        """Send what the kernel takes now and keep the rest; only while the wire `is_flushed`."""
        try:
            count = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError:
            self._rest = memoryview(data)
            raise
        if count < len(data):
            self._rest = memoryview(data)[count:]

    async def flush(self) -> None:
        """Wait until what `write` kept has left. A cancelled flush is carried on by the next one."""
        while self._rest:
            self._require_open()
            await trio.lowlevel.wait_writable(self._socket)
            try:
                count = self._socket.send(self._rest)
            except (BlockingIOError, InterruptedError):
                continue
            self._rest = self._rest[count:]

    async def readable(self) -> None:
        """Wait until `read` has something to say."""
        self._require_open()
        await trio.lowlevel.wait_readable(self._socket)

    def read(self) -> bytes | None:
        """What has arrived: b"" at the end of the stream, None when there is nothing yet."""
        try:
            return self._socket.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return None

    def close(self) -> None:
        """Close at once; who waits for it gets trio.ClosedResourceError."""
        if not self.is_closed:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def abandon(self) -> None:
        """Close a socket whose event loop is gone, or which is another process' too: nothing is sent."""
        self._socket.close()

    def _require_open(self) -> None:
        if self.is_closed:
            raise trio.ClosedResourceError("this connection was closed")


def _abandon(wires: weakref.WeakSet[Wire]) -> None:
    for wire in list(wires):
        wire.abandon()


_open: PerRun[weakref.WeakSet[Wire]] = PerRun(weakref.WeakSet, _abandon)
"""Those of each run: they end with it, whoever left them behind."""


class TlsWire(Wire):
    """The same over TLS; `handshake` comes first."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._has_ended = False

    @property
    def unsent(self) -> int:
        """Always 0: which commands are in which record is not known here."""
        return 0

    async def handshake(self) -> None:
        """Agree on keys and verify the server; raises ssl.SSLError, or OSError at the end of the stream."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._push()
            else:
                await self._push()
                return
            await self.readable()
            data = super().read()
            if data == b"":
                raise ConnectionResetError("the server closed the connection during the TLS handshake")
            if data:
                self._incoming.write(data)

    def write(self, data: bytes) -> None:
        """As on a plain wire."""
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
        super().write(self._outgoing.read())

    async def readable(self) -> None:
        """As on a plain wire."""
        if self._has_ended:
            await trio.lowlevel.checkpoint()
        else:
            await super().readable()

    def read(self) -> bytes | None:
        """As on a plain wire; a stream cut without TLS' good-bye ends like any other."""
        data = b"" if self._has_ended else super().read()
        if not data:
            return data
        self._incoming.write(data)
        plain = []
        try:
            while found := self._tls.read(CHUNK):
                plain.append(found)
        except ssl.SSLWantReadError:
            return b"".join(plain) or None
        except ssl.SSLZeroReturnError:
            self._has_ended = True
        return b"".join(plain)

    async def _push(self) -> None:
        data = self._outgoing.read()
        if data:
            super().write(data)
            await self.flush()


def reason_of(exc: OSError | trio.ClosedResourceError) -> str:
    """Why a wire broke, in a few words."""
    if isinstance(exc, trio.ClosedResourceError):
        return "it was closed here"
    return exc.strerror or str(exc) or type(exc).__name__
