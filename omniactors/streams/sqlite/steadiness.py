"""Steadiness: what a delay means when the wall clock is set, and that a machine that slept is noticed.

A retry and a delayed event wait for a length of time, whatever the wall clock does: when it is set, their times
are moved along. An event for a given time (`at`) waits for what the wall clock says. Time that the machine sleeps
counts for both. The database is a machine's own, so all its processes see the same: how far the wall clock is
ahead of the time since the start of the machine stands in the database, and whoever finds another difference
first moves what is due. After another start of the machine nothing is moved: only the wall clock went on.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from omniactors.streams.sqlite.database import transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

_STEP: Final = 1.0
"""Seconds by which the clock must be set to count: it is corrected by less all the time."""

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

_TIME_SPACE: Final = Path("/proc/self/ns/time")
"""Processes in different ones count the time since the start differently."""


class Uptime(NamedTuple):
    """A clock that goes on whatever the wall clock does, sleep included, and the name of its beginning."""

    beginning: str
    seconds: Callable[[], float]


def system_uptime() -> Uptime | None:
    """The machine's, or None where there is none that all processes share."""
    try:
        beginning = _BOOT.read_text(encoding="ascii").strip()
        time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return None
    with suppress(OSError):
        beginning += f" {_TIME_SPACE.readlink()}"
    return Uptime(beginning, lambda: time.clock_gettime(time.CLOCK_BOOTTIME))


class Steadiness:
    """Compares the wall clock with the machine's uptime, of which None makes it do nothing."""

    def __init__(self, clock: Callable[[], float], uptime: Uptime | None) -> None:
        self._clock = clock
        self._uptime = uptime
        self._ahead: float | None = None
        self._slept = self._sleep()

    def has_changed(self) -> bool:
        """Whether the clock was set since the last `keep`, or there was none yet."""
        ahead = self._now_ahead()
        return ahead is not None and (self._ahead is None or abs(ahead - self._ahead) > _STEP)

    def keep(self, connection: sqlite3.Connection) -> bool:
        """Move what waits for a length of time along with the clock; True when it was set. Called under the lock."""
        ahead = self._now_ahead()
        if ahead is None or self._uptime is None:
            return False
        with transaction(connection):
            beginning, before = connection.execute("SELECT beginning, ahead FROM clock").fetchone()
            is_same = beginning == self._uptime.beginning and before is not None
            step = ahead - before if is_same else 0.0
            if abs(step) > _STEP:
                connection.execute(
                    "UPDATE pending SET due = due + ? WHERE consumer IS NULL AND due > 0 AND due < ?", (step, _FOREVER)
                )
                connection.execute("UPDATE scheduled SET due = due + ? WHERE is_delay", (step,))
            if abs(step) > _STEP or not is_same:
                connection.execute("UPDATE clock SET beginning = ?, ahead = ?", (self._uptime.beginning, ahead))
        is_first, self._ahead = self._ahead is None, ahead
        return not is_first

    def has_slept(self) -> bool:
        """Whether the machine slept since the last call: waits of this process did not go on meanwhile."""
        before, self._slept = self._slept, self._sleep()
        return self._slept - before > _STEP

    def _sleep(self) -> float:
        return 0.0 if self._uptime is None else self._uptime.seconds() - time.monotonic()

    def _now_ahead(self) -> float | None:
        return None if self._uptime is None else self._clock() - self._uptime.seconds()


_FOREVER: Final = 1e15
"""Seconds; beyond that a sum of times says nothing any more."""
