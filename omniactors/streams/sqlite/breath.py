"""Breath: a busy trio loop lets the database thread have the interpreter lock now and then.

A trio loop that always has something to do releases the interpreter lock for a microsecond, when
it looks at its sockets, and has it again before another thread woke up. Worse, each such release
begins anew the 5 ms after which a waiting thread may demand the lock: it can starve for seconds.
So while a loop waits for the database thread it pauses for as long as a thread needs to wake up.
"""

from __future__ import annotations

import time
from typing import Final

import trio

_PAUSE: Final = 5e-5
"""Seconds: long enough for a thread to be woken on another core."""

_ANSWER_INTERVAL: Final = 5e-4
"""Seconds between pauses while an answer is waited for: at most a fifth of the loop's time."""

_NEWS_INTERVAL: Final = 5e-3
"""Seconds between pauses while only news are waited for: it costs the loop 2 % of its time."""


class Waiting:
    """How many tasks are inside `with waiting:` blocks."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


class Breath(trio.abc.Instrument):
    """Watches one trio run. Tasks enter `answers` to wait for an outcome, `news` to wait for a change."""

    def __init__(self) -> None:
        self.answers = Waiting()
        self.news = Waiting()
        self._last = 0.0

    def after_io_wait(self, timeout: float) -> None:
        """Called by trio after each look at the sockets; `timeout` is 0 when tasks are ready to run."""
        if timeout > 0 or not (self.answers.count or self.news.count):
            return
        now = time.perf_counter()
        if now - self._last >= (_ANSWER_INTERVAL if self.answers.count else _NEWS_INTERVAL):
            time.sleep(_PAUSE)
            self._last = now


_breath: trio.lowlevel.RunVar[Breath] = trio.lowlevel.RunVar("omniactors database thread")


def breath_of_this_run() -> Breath:
    """The one of the running trio loop, made on first use."""
    try:
        return _breath.get()
    except LookupError:
        breath = Breath()
        _breath.set(breath)
        trio.lowlevel.add_instrument(breath)
        return breath
