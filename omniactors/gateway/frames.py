"""Frame rule: where the frames of a WebSocket client begin and end, and how much of one message is taken. Pure.

The library behind joins the pieces of a message, each an object of its own however small, and bounds
what they hold, not what they are. So it gets every frame's payload in one piece, of few frames a message.
What a frame may be is its matter: it sees each header as soon as that is whole.
"""

from __future__ import annotations

from typing import Final

MAX_FRAMES: Final = 64
"""Frames of one message: clients that write messages in parts have no reason for more with 64 KiB."""

FINISHED: Final = 0x80
CONTROL: Final = 0x08
MASKED: Final = 0x80
SHORT: Final = 0x7F


class FrameCutter:
    """Takes bytes as they come, gives back those that are to be passed on, and holds the rest.

    `excess` says what was too much; from then on nothing more is given.
    """

    def __init__(self, max_message: int) -> None:
        self.excess: str | None = None
        self._max_message = max_message
        self._held = bytearray()
        self._awaited = 0  # bytes of payload that the frame whose header was passed on has
        self._size = 0  # of the message, as its headers say
        self._passed = 0  # of that, passed on
        self._frames = 0
        self._is_data = False  # whether that frame is part of a message: others may stand within one
        self._is_last = False  # whether the message ends with it

    @property
    def held(self) -> int:
        """Bytes that this message keeps: here, and passed on for a message that is not whole yet."""
        return len(self._held) + self._passed

    def feed(self, data: bytes) -> bytes:
        """Take what has come; what is to be passed on now, mostly nothing or everything."""
        self._held += data
        ready = bytearray()
        while self.excess is None and (count := self._whole()):
            ready += self._held[:count]
            del self._held[:count]
        return bytes(ready)

    def _whole(self) -> int:
        """How many of the held bytes are a header, or the payload of the last one; 0 when more must come."""
        if self._awaited:
            if len(self._held) < self._awaited:
                return 0
            count, self._awaited = self._awaited, 0
            self._passed += count if self._is_data else 0
            self._end_message()
            return count
        return self._header()

    def _header(self) -> int:
        if len(self._held) < 2:  # noqa: PLR2004 -- what every header has
            return 0
        first, second = self._held[:2]
        wide = {126: 2, 127: 8}.get(second & SHORT, 0)
        count = 2 + wide + (4 if second & MASKED else 0)
        if len(self._held) < count:
            return 0
        self._awaited = int.from_bytes(self._held[2 : 2 + wide]) if wide else second & SHORT
        self._is_data = not first & CONTROL
        self._is_last = self._is_data and bool(first & FINISHED)
        if self._is_data:
            self._size += self._awaited
            self._frames += 1
            if self._size > self._max_message:
                self.excess = f"a message may have {self._max_message} bytes"
            elif self._frames > MAX_FRAMES:
                self.excess = f"a message may have {MAX_FRAMES} frames"
        if not self._awaited:
            self._end_message()
        return count

    def _end_message(self) -> None:
        """Begin to count anew if the message is whole."""
        if self._is_last:
            self._size = self._passed = self._frames = 0
