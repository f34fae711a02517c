"""Times rule: a moment on the command line is Unix seconds or ISO 8601; without an offset it is local time."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from omniactors.cli.exits import CommandError, ExitCode

TIME_HELP = "Unix seconds, or ISO 8601 as 2030-01-31T18:00 (local time, unless it ends in Z or +02:00)"

_BARE_DATE = re.compile(r"(?:19|20)\d\d(?:\d\d\d\d)?")
"""A year or a date without dashes, which as Unix seconds would be a day in 1970."""

END_OF_TIME = 253_402_300_800.0
"""The year 10,000 in Unix seconds; milliseconds are beyond it."""


def parse_time(text: str, option: str) -> float:
    """The moment in Unix seconds; raises CommandError."""
    seconds = _seconds(text.strip())
    if seconds is None:
        raise CommandError(f"{option} must be {TIME_HELP}, not {text!r}", ExitCode.USAGE)
    if not 0 <= seconds < END_OF_TIME:
        raise CommandError(f"{option} {text!r} is not between the years 1970 and 9999 in seconds", ExitCode.USAGE)
    return seconds


def show_time(seconds: float) -> str:
    """A moment for people, in local time."""
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def _seconds(text: str) -> float | None:
    """What `text` says; None when it says no moment."""
    if _BARE_DATE.fullmatch(text):
        return None
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        return seconds if math.isfinite(seconds) else None
    try:
        # Without an offset, astimezone() takes it as local time.
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        return None
