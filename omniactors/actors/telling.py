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
from omniactors.tracebacks import user_traceback

if TYPE_CHECKING:
    from collections.abc import Callable

    from omniactors.actors.notices import Notice
    from omniactors.actors.rules import ExitReason

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
        self._counts: dict[tuple[str, str], int] = {}
        """Who, and what happened: how often in this period."""
        self._ends = math.inf

    def __call__(self, notice: Notice) -> None:
        """Tell of one thing that happened."""
        if self._emit is None:
            self._log(notice)
            return
        try:
            self._emit(notice)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 -- a callback may raise anything, and must not end the tree
            line = f"emit raised {shown(error)} for {type(notice).__name__}"
            self._record(logging.ERROR, (notice.path, "failures of emit"), line, error)

    def flush(self) -> None:
        """Tell how many were left out."""
        for (who, what), count in self._counts.items():
            if count > BURST:
                logger.warning("%s: %s more %s were left out here", who, f"{count - BURST:,}", what)
        self._counts.clear()
        self._ends = math.inf

    def _log(self, notice: Notice) -> None:
        match notice:
            case ChildExited(path, incarnation, reason) if reason.kind == "crash":
                self._record_end(path, "crashes", f"{path} (incarnation {incarnation})", reason)
            case ChildStartFailed(path, reason):
                self._record_end(path, "failed starts", f"{path} did not start", reason)
            case ChildRestartScheduled(path, delay, restarts):
                when = f"in {delay:.3g} s" if delay else "at once"
                line = f"{path} is started again {when} ({restarts} in this period)"
                self._record(logging.WARNING, (path, "restarts"), line)
            case SupervisorGaveUp(path, child_id, reason):
                line = f"{path} gives up on child {shown(child_id)} and ends: {reason}"
                self._record(logging.ERROR, (path, "ends"), line)
            case ChildStuck(path, seconds, stack):
                where = stack[-1] if stack else "nowhere"
                line = f"{path} was cancelled {seconds:g} s ago and has not ended; it is at {where}"
                self._record(logging.WARNING, (path, "children that do not end"), line)
            case MessagesLost(path, count):
                line = f"{path} ended with {count} messages unhandled"
                self._record(logging.INFO, (path, "losses of messages"), line)

    def _record_end(self, path: str, what: str, line: str, reason: ExitReason) -> None:
        # What ended a supervisor was told where it happened, and may have come up a thousand levels.
        error = None if isinstance(reason.error, SupervisionError) else reason.error
        self._record(logging.WARNING, (path, what), f"{line}: {reason}", error)

    def _record(self, level: int, whose: tuple[str, str], line: str, error: BaseException | None = None) -> None:
        now = time.monotonic()
        if now >= self._ends:
            self.flush()
        self._ends = min(self._ends, now + PERIOD)
        path, what = whose
        kind = (path.rpartition("/")[0] or path, what)
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count <= BURST and logger.isEnabledFor(level):
            text = line if error is None else f"{line}\n{user_traceback(error).rstrip()}"
            logger.log(level, "%s", text if len(text) <= LONGEST else f"{text[:LONGEST]}\n...")


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
