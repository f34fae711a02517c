"""Signal rule: a script that runs a system stops in order when it is told to end, unless somebody else handles that.

Only in the main thread, and only what nobody has taken: a handler of anybody's and an ignored signal stay.
Ctrl-C is heard in the main task of `trio.run` alone: there it would be raised in the middle of whichever
handler runs at that moment. A second one is, since a handler that does not wait for anything hears no other.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    Handler = Callable[[int, FrameType | None], object] | int | None

ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a process that does nothing about it."""


@contextmanager
def hearing_endings(hear: Callable[[int], None], *, at_once: Callable[[FrameType | None], None]) -> Iterator[None]:
    """Have `hear` called in this trio run for each such signal; afterwards nobody hears them, as before.

    `at_once` is called in the signal handler itself, with the frame that the signal has interrupted.
    """
    token = trio.lowlevel.current_trio_token()
    has_interrupt = is_over = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal has_interrupt
        if is_over:  # who took the signal over from us has given it back to us, too late
            signal.signal(number, taken[number])
            signal.raise_signal(signal.Signals(number))
            return
        at_once(frame)
        token.run_sync_soon(hear, number)
        if number == signal.SIGINT:
            is_repeated, has_interrupt = has_interrupt, True
            before = taken[signal.SIGINT]
            if is_repeated and callable(before):
                before(number, frame)

    taken: dict[int, Handler] = {}
    if threading.current_thread() is threading.main_thread():
        taken = {number: before for number in (*ENDINGS, signal.SIGINT) if _is_free(before := signal.getsignal(number))}
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        is_over = True
        for number, before in taken.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, before)


def _is_free(handler: Handler) -> bool:
    """Whether nobody but the system, or trio, does anything about a signal."""
    is_trios = getattr(handler, "__module__", "").startswith("trio.")
    return handler is signal.SIG_DFL or (is_trios and is_main_task())


def is_main_task() -> bool:
    """Whether the current task is the one that `trio.run` was called for: its end is the end of the run."""
    nursery = trio.lowlevel.current_task().parent_nursery
    return nursery is not None and nursery.parent_task is trio.lowlevel.current_root_task()
