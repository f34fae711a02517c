"""Crash rules: what the death of a process means for the events that it held.

Only what had begun when it died counts. What had begun beside others, or is not known (the record of
it died with the machine), counts towards being handled alone, and no further: so no event is ever put
away for the sake of another one, and one that ends its process all by itself is.
"""

from __future__ import annotations

from typing import Final

SUSPECT_CRASHES: Final = 3
"""Crashes after which an event is handled alone in its process: it may be what ends it."""

MAX_CRASHES: Final = 5
"""Crashes after which an event is dead: at the last ones nothing else was at work."""


def crashes_after(crashes: int, *, has_begun: bool | None, is_alone: bool) -> int:
    """The crashes of an event that a dead process held; `has_begun` is None when that is not known.

    `is_alone` says that nothing else had begun (or, when that is not known, that nothing else was held),
    which is how a suspect is handled: without that nothing counts beyond a suspect's crashes.
    """
    if has_begun is False:
        return crashes
    return crashes + 1 if is_alone else max(crashes, min(crashes + 1, SUSPECT_CRASHES))
