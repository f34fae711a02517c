"""A stream handed over to the WebSocket library, which sees a clean handshake and then whole frames."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from omniactors.gateway.frames import FrameCutter

if TYPE_CHECKING:
    from omniactors.gateway.budget import Budget

CLOSE = 0x88
"""The first byte of a close frame."""

CHUNK = 16 * 1024
CLOSE_DEADLINE = 1.0
"""Seconds for the last words to a client whose connection ends: they are a courtesy."""

TOO_BIG = 1009
TRY_AGAIN_LATER = 1013
VANISHED = 1006
"""The close code of a connection that ended without a close."""

NO_FRAME = frozenset({1000, 1001, 1005, VANISHED})
"""Reasons for an end that need no close frame of ours: a peer that closed in order, or has vanished."""


class HandedOverStream(trio.abc.Stream):
    """`stream` as a WebSocket library is to see it, from the `handshake` on.

    What the client sent behind its handshake, `rest` and all that follows, is withheld until
    `release`: wsproto forgets it when it comes before the handshake is answered. `aclose` ends the
    use of the stream and leaves the stream open, so that `say_why` can tell the client what was wrong.
    """

    def __init__(
        self, handshake: bytes, rest: bytes, stream: trio.abc.Stream, *, max_message: int, messages: Budget
    ) -> None:
        self._ready = handshake
        self._rest = rest
        self._stream = stream
        self._messages = messages
        self._claimed = 0
        self._cutter = FrameCutter(max_message)
        self._is_released = trio.Event()
        self._is_closed = False
        self._receiving = trio.CancelScope()
        self._excess: tuple[int, str] | None = None
        self._may_speak = False  # once open: neither has a close frame been sent, nor half of any frame

    def release(self) -> None:
        """The handshake is answered: pass on what follows it."""
        self._may_speak = True
        self._is_released.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.abc.ReceiveStream.receive_some`; BrokenResourceError when the client sends more than it may."""
        with trio.CancelScope() as self._receiving:
            await trio.lowlevel.checkpoint()
            while not self._ready and not self._is_closed:
                if self._excess is not None:
                    raise trio.BrokenResourceError(self._excess[1])
                await self._is_released.wait()
                data = self._rest or bytes(await self._stream.receive_some(CHUNK))
                self._rest = b""
                if not data:
                    return b""
                self._take(data)
        if self._is_closed:
            raise trio.ClosedResourceError
        count = len(self._ready) if max_bytes is None else max_bytes
        data, self._ready = self._ready[:count], self._ready[count:]
        return data

    def _take(self, data: bytes) -> None:
        # What is too much is told with the next receive: the library may find the frame itself wrong.
        self._ready = self._cutter.feed(data)
        if self._cutter.excess is not None:
            self._excess = TOO_BIG, self._cutter.excess
        elif not self._claim(self._cutter.held):
            self._excess = TRY_AGAIN_LATER, "the gateway has too many messages in hand"

    def _claim(self, size: int) -> bool:
        if size > self._claimed and not self._messages.claim(size - self._claimed):
            return False
        if size < self._claimed:
            self._messages.release(self._claimed - size)
        self._claimed = size
        return True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.abc.SendStream.send_all`; the library gives one frame each time."""
        if self._is_closed:
            raise trio.ClosedResourceError
        could_speak, self._may_speak = self._may_speak, False
        await self._stream.send_all(data)
        self._may_speak = could_speak and data[:1] != bytes([CLOSE])

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream.wait_send_all_might_not_block`."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """The library is done with the stream."""
        self._is_closed = True
        self._receiving.cancel()
        await trio.lowlevel.checkpoint()

    def give_back(self) -> None:
        """Hold nothing any more."""
        self._claim(0)

    async def say_why(self, code: int, reason: str) -> None:
        """Send the close frame that the library did not, for what ended the connection, if the client takes it soon."""
        if code == VANISHED and self._excess is not None:
            code, reason = self._excess
        if self._may_speak and code not in NO_FRAME:
            payload = code.to_bytes(2) + reason.encode()[:120].decode(errors="ignore").encode()
            with trio.move_on_after(CLOSE_DEADLINE), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_all(bytes([CLOSE, len(payload)]) + payload)
