"""Failure rule: what a failed try and a dead event say in the log, and how often when thousands fail alike.

A failed try is one WARNING line, a dead event one ERROR with the traceback, a crash of an actor one
WARNING with it. Of those that are alike the first BURST in PERIOD seconds are told, and then how many were left out.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from omniactors.tracebacks import shows_code

if TYPE_CHECKING:
    from omniactors.agents.settler import Fate, Job
    from omniactors.streams.settlement import ErrorInfo

logger = logging.getLogger("omniactors.agents")

BURST = 5
"""How many of a kind are told one by one."""

PERIOD = 10.0
"""Seconds after which a kind is told again, after the number of those that were left out."""

LINE = 400
"""Characters of an error's message in a line of the log: the whole of it is in the dead letter."""

_Kind = tuple[str, str, str]
"""Who, what happened, type of the error."""


class FailureLog:
    """What is told, and counts of what is not. Times are in seconds of any clock."""

    def __init__(self) -> None:
        self._told: dict[_Kind, int] = {}
        self._left_out: dict[_Kind, int] = {}
        self._ends = math.inf

    def note(self, job: Job, fate: Fate, *, max_attempts: int, now: float) -> None:
        """Tell of a try that failed, unless the event was not ours any more."""
        settlement, event = job.settlement, job.event
        agent = f"agent {settlement.key.agent}"
        task = "an entry that is no event" if event is None else f"task {event.id}"
        if settlement.dead is not None and fate != "late":
            dead = settlement.dead
            tries = "1 attempt" if dead.attempts == 1 else f"{dead.attempts} attempts"
            line = f"{agent}: {described(dead.error)}; {task} is dead after {tries} ({dead.reason})"
            kind = (agent, "dead events", dead.error.type)
            self._tell(kind, logging.ERROR, line, report=dead.error.traceback, now=now)
        elif settlement.retry is not None and job.error is not None and fate != "late":
            attempt = f"attempt {settlement.retry.attempts} of {max_attempts}, next in {settlement.retry.after:.3g} s"
            line = f"{agent}: {described(job.error)}; {task}, {attempt}"
            # Who raises RetryAfter says when, and that nothing went wrong.
            level = logging.INFO if job.error.type == "RetryAfter" else logging.WARNING
            self._tell((agent, "failed tries", job.error.type), level, line, now=now)

    def note_crash(self, who: str, error: ErrorInfo, *, now: float) -> None:
        """Tell of an actor that crashed, outside of an event."""
        line = f"{who} crashed: {described(error)}"
        self._tell((who, "crashes", error.type), logging.WARNING, line, report=error.traceback, now=now)

    def next_due(self) -> float:
        """When `flush` has something to do; math.inf when it has not."""
        return self._ends

    def flush(self, now: float) -> None:
        """Tell how many were left out, once their time is over."""
        if now < self._ends:
            return
        for (who, what, error_type), count in self._left_out.items():
            logger.warning("%s: %s more %s of %s were left out here", who, f"{count:,}", what, error_type)
        self._told.clear()
        self._left_out.clear()
        self._ends = math.inf

    def _tell(self, kind: _Kind, level: int, line: str, *, report: str = "", now: float) -> None:
        self.flush(now)
        self._ends = min(self._ends, now + PERIOD)
        count = self._told[kind] = self._told.get(kind, 0) + 1
        if count <= BURST:
            logger.log(level, "%s", f"{line}\n{report.rstrip()}" if shows_code(report) else line)
        else:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1


def described(error: ErrorInfo) -> str:
    """The error in one line, with its type, as `KeyError: 'nope'`."""
    text = " ".join(error.text.split())
    return text if len(text) <= LINE else f"{text[: LINE - 1]}…"
