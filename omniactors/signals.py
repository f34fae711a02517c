"""Signal rule: a script that runs a system stops in order when it is told to end, unless somebody else handles that.

Only in the main thread, and only what nobody has taken: a handler of anybody's and an ignored signal stay.
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

ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a process that does nothing about it; Ctrl-C is Python's own."""


@contextmanager
def hearing_endings(hear: Callable[[int], None]) -> Iterator[None]:
    """Have `hear` called in this trio run for each such signal; afterwards nobody handles them, as before."""
    token = trio.lowlevel.current_trio_token()

    def handler(number: int, _frame: FrameType | None) -> None:
        token.run_sync_soon(hear, number)

    is_main = threading.current_thread() is threading.main_thread()
    taken = [number for number in ENDINGS if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is handler:
                signal.signal(number, signal.SIG_DFL)


def is_main_task() -> bool:
    """Whether the current task is the one that `trio.run` was called for: its end is the end of the run."""
    nursery = trio.lowlevel.current_task().parent_nursery
    return nursery is not None and nursery.parent_task is trio.lowlevel.current_root_task()
