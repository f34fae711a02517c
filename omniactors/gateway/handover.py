"""A stream handed over in mid-conversation: what was already read comes first, the rest from the stream itself."""

from __future__ import annotations

import trio


class ReplayingStream(trio.abc.Stream):
    """`stream`, as if `already_read` had not been read from it yet."""

    def __init__(self, already_read: bytes, stream: trio.abc.Stream) -> None:
        self._already_read = already_read
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.abc.ReceiveStream.receive_some`."""
        if not self._already_read:
            return bytes(await self._stream.receive_some(max_bytes))
        await trio.lowlevel.checkpoint()
        count = len(self._already_read) if max_bytes is None else max_bytes
        data, self._already_read = self._already_read[:count], self._already_read[count:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.abc.SendStream.send_all`."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream.wait_send_all_might_not_block`."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """As `trio.abc.AsyncResource.aclose`."""
        await self._stream.aclose()
