"""What a handler can say beside a plain result: this is hopeless, try again later, send it on."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from omniactors.errors import OmniActorsError
from omniactors.streams.envelope import check_topic


class Reject(OmniActorsError):
    """Raised by a handler: the event is of no use, now or later; it is dead-lettered at once."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RetryAfter(OmniActorsError):
    """Raised by a handler: try the event again in `seconds`; counts as a try. Raises ValueError when negative."""

    def __init__(self, seconds: float, reason: str = "") -> None:
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"RetryAfter takes a finite number of seconds of at least 0, not {seconds!r}")
        super().__init__(reason or f"to be tried again after {seconds:g} s")
        self.seconds = seconds


class HandlerTimeout(OmniActorsError):
    """A handler took longer than the agent's `timeout`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the handler took longer than {seconds:g} s")
        self.seconds = seconds


class Reply(msgspec.Struct, frozen=True):
    """Returned by a handler: `content` is the result, and goes on to the topic `reply_to`."""

    content: Any
    reply_to: str

    def __post_init__(self) -> None:
        """Strip the topic; raises EnvelopeError when it is none."""
        msgspec.structs.force_setattr(self, "reply_to", check_topic(self.reply_to))
