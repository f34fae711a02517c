"""Looking out: after a command has left, the event loop is kept turning for a moment instead of falling asleep.

A server on the same machine mostly has answered by then, and to be woken takes as long as its answer: with one
publisher that made 1.4 times as many publishes. Other tasks run meanwhile as ever. Pure: it says how often to look.
"""

from __future__ import annotations

import os
from typing import Final

PROCESSORS: Final = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

TURNS: Final = 5 if PROCESSORS > 1 else 0
"""Turns of the loop, some 50 microseconds when it has nothing else to do. With one processor they would keep the
server from its work."""

MISSES: Final = 8
"""After so many looks in a row that were in vain the server is taken for a distant one ..."""

AGAIN: Final = 64
"""... and only every so many commands it is tried again."""


class Lookout:
    """How one connection looks out, by how it went so far."""

    __slots__ = ("_misses",)

    def __init__(self) -> None:
        self._misses = 0

    def turns(self) -> int:
        """How often to look for the reply to the command that has just left."""
        if self._misses < MISSES:
            return TURNS
        self._misses += 1
        return 0 if self._misses % AGAIN else TURNS

    def note(self, *, has_come: bool) -> None:
        """Whether the reply came while it was looked for."""
        self._misses = 0 if has_come else self._misses + 1
