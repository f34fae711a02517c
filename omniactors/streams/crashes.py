"""Crash rules: what the death of a process means for the events that it held.

Only what had begun when it died counts. What is not known (the record of it died with the machine)
counts towards being handled alone, and no further: then an event that was held with others is never
put away for their sake, and one that kills its process all by itself is.
"""

from __future__ import annotations

from typing import Final

SUSPECT_CRASHES: Final = 3
"""Crashes after which an event is handled alone in its process: it may be what ends it."""

MAX_CRASHES: Final = 5
"""Crashes after which an event is dead: at the last ones nothing else was at work."""


def crashes_after(crashes: int, *, has_begun: bool | None, is_alone: bool) -> int:
    """The crashes of an event that a dead process held; `has_begun` is None when that is not known.

    `is_alone` says that the process held nothing else, which is how a suspect is handled.
    """
    if has_begun is not None:
        return crashes + has_begun
    return crashes + 1 if is_alone else max(crashes, min(crashes + 1, SUSPECT_CRASHES))
