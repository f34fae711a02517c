"""Telling rule: how notices reach who watches a tree, or the log; what a user's callback raises changes nothing.

Without `emit` the log is told of crashes and restarts (WARNING) and of giving up (ERROR). Of those
that are alike under one supervisor the first BURST in PERIOD seconds are told one by one; then how
many there were.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from omniactors.actors.notices import (
    ChildExited,
    ChildRestartScheduled,
    ChildStartFailed,
    ChildStuck,
    MessagesLost,
    SupervisorGaveUp,
)
from omniactors.errors import SupervisionError, shown
from omniactors.tracebacks import shows_code, user_traceback

if TYPE_CHECKING:
    from collections.abc import Callable

    from omniactors.actors.notices import Notice

logger = logging.getLogger("omniactors.supervision")

BURST = 10
"""How many of a kind are told one by one: a storm of restarts must not fill the disk."""
PERIOD = 10.0
"""Seconds after which a kind is told again, after the number of those that were left out."""
LONGEST = 20_000
"""Characters of one record, traceback included."""


class Teller:
    """Gives the notices of a whole tree to `emit`, or to the log if there is none; raises nothing of its own."""

    def __init__(self, emit: Callable[[Notice], None] | None) -> None:
        self._emit = emit
        self._seen: dict[tuple[str, str], int] = {}
        """Who, and what happened: how often in this period."""
        self._ends = math.inf

    def __call__(self, notice: Notice) -> None:
        """Tell of one thing that happened."""
        if self._emit is None:
            if type(notice) in _LOGGED:
                self._log(notice)
            return
        try:
            self._emit(notice)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 -- a callback may raise anything, and must not end the tree
            if self._counts(logging.ERROR, notice.path, "failures of emit"):
                self._write(logging.ERROR, f"emit raised {shown(error)} for {type(notice).__name__}", error)

    def flush(self) -> None:
        """Tell how many were left out."""
        for (who, what), count in self._seen.items():
            if count > BURST:
                logger.warning("%s: %s more %s were left out here", who, f"{count - BURST:,}", what)
        self._seen.clear()
        self._ends = math.inf

    def _log(self, notice: Notice) -> None:
        reason = notice.reason if isinstance(notice, ChildExited | ChildStartFailed) else None
        if reason is not None and reason.kind != "crash":
            return
        what, level = _LOGGED[type(notice)]
        if not self._counts(level, notice.path, what):
            return
        error = reason.error if reason is not None else None
        # What ended a supervisor was told where it happened, and may have come up a thousand levels.
        self._write(level, f"{notice.path} {_sentence(notice)}", None if isinstance(error, SupervisionError) else error)

    def _counts(self, level: int, path: str, what: str) -> bool:
        """Count one thing that happened; False when it is not to be told."""
        if not logger.isEnabledFor(level):
            return False
        now = time.monotonic()
        if now >= self._ends:
            self.flush()
        self._ends = min(self._ends, now + PERIOD)
        kind = (path.rpartition("/")[0] or path, what)
        count = self._seen[kind] = self._seen.get(kind, 0) + 1
        return count <= BURST

    def _write(self, level: int, line: str, error: BaseException | None) -> None:
        report = "" if error is None else user_traceback(error).rstrip()
        text = f"{line}\n{report}" if shows_code(report) else line
        logger.log(level, "%s", text if len(text) <= LONGEST else f"{text[:LONGEST]}\n...")


_LOGGED: dict[type, tuple[str, int]] = {
    ChildExited: ("crashes", logging.WARNING),
    ChildStartFailed: ("failed starts", logging.WARNING),
    ChildRestartScheduled: ("restarts", logging.WARNING),
    SupervisorGaveUp: ("ends", logging.ERROR),
    ChildStuck: ("children that do not end", logging.WARNING),
    MessagesLost: ("losses of messages", logging.INFO),
}
"""What is told of, how many of it are called, and how grave it is."""


def _sentence(notice: Notice) -> str:
    """What is said of the one at the notice's path."""
    match notice:
        case ChildExited(_, incarnation, reason):
            return f"(incarnation {incarnation}): {reason}"
        case ChildStartFailed(_, reason):
            return f"did not start: {reason}"
        case ChildRestartScheduled(_, delay, restarts):
            return f"is started again {f'in {delay:.3g} s' if delay else 'at once'} ({restarts} in this period)"
        case SupervisorGaveUp(_, child_id, reason):
            return f"gives up on child {shown(child_id)} and ends: {reason}"
        case ChildStuck(_, seconds, stack):
            where = stack[-1] if stack else "nowhere"
            return f"was cancelled {seconds:g} s ago and has not ended; it is at {where}"
        case _:
            return f"ended with {notice.count} messages unhandled" if isinstance(notice, MessagesLost) else ""


def call_safely(callback: Callable[..., object], *args: object) -> bool:
    """Call what a user gave; False, after a line in the log, when it raised."""
    try:
        callback(*args)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a callback may raise anything, and must not end the tree
        logger.exception("%s raised, which changes nothing", shown(callback))
        return False
    return True
