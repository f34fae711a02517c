"""A stream handed over in mid-conversation: what was already read comes first, the rest from the stream itself."""

from __future__ import annotations

import trio


class HandedOverStream(trio.abc.Stream):
    """`stream` as a WebSocket library is to see it, from the `head` of the handshake on.

    What the client sent behind its head, `rest` and all that follows, is withheld until `release`:
    wsproto forgets it when it comes before the handshake is answered.
    """

    def __init__(self, head: bytes, rest: bytes, stream: trio.abc.Stream) -> None:
        self._head = head
        self._rest = rest
        self._stream = stream
        self._released = trio.Event()

    def release(self) -> None:
        """The handshake is answered: pass on what follows it."""
        self._released.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.abc.ReceiveStream.receive_some`."""
        if self._head:
            await trio.lowlevel.checkpoint()
            self._head, data = _split(self._head, max_bytes)
            return data
        await self._released.wait()
        if self._rest:
            self._rest, data = _split(self._rest, max_bytes)
            return data
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.abc.SendStream.send_all`."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream.wait_send_all_might_not_block`."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """As `trio.abc.AsyncResource.aclose`."""
        await self._stream.aclose()


def _split(data: bytes, max_bytes: int | None) -> tuple[bytes, bytes]:
    """What remains, and what is given now."""
    count = len(data) if max_bytes is None else max_bytes
    return data[count:], data[:count]
