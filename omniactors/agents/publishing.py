"""Publishing rule: what is checked of an event before it is written, its size and when it becomes visible.

Pure. The limit is what one event may have in bytes as JSON, results and replies included.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, TypeGuard

import msgspec

from omniactors.errors import EnvelopeError, EventTooLarge
from omniactors.streams.settlement import WEBHOOK_TOPIC

if TYPE_CHECKING:
    from omniactors.streams.settlement import Publication, Settlement


def check_size(publication: Publication, limit: int) -> Publication:
    """The publication; raises EventTooLarge when its event is above the limit."""
    if len(publication.body) > limit:
        raise EventTooLarge(publication.topic, len(publication.body), limit)
    return publication


def check_outcome(settlement: Settlement, limit: int) -> Settlement:
    """The settlement of a success; raises EnvelopeError when its result or what it publishes is above the limit.

    A webhook carries the result and little else, so it is not counted by itself.
    """
    record = settlement.result
    if record is not None and isinstance(record.result, msgspec.Raw) and len(record.result) > limit:
        raise EnvelopeError(f"the result has {len(record.result):,} bytes, and {limit:,} are allowed")
    for publication in settlement.publications:
        if publication.topic != WEBHOOK_TOPIC:
            check_size(publication, limit)
    return settlement


def schedule(publication: Publication, *, delay: float | None, at: float | datetime | None) -> Publication:
    """The publication, to become visible `delay` seconds after it is written or at the time `at`.

    Raises EnvelopeError for both, for a delay that is negative or no number, and for a time without zone.
    """
    if delay is None and at is None:
        return publication
    if delay is not None and at is not None:
        raise EnvelopeError("give delay or at, not both: either says when the event becomes visible")
    if delay is not None:
        if not _is_number(delay) or delay < 0:
            raise EnvelopeError(f"delay must be a finite number of seconds of at least 0, not {delay!r}")
        return msgspec.structs.replace(publication, delay=float(delay))
    return msgspec.structs.replace(publication, at=unix_seconds("at", at))


def unix_seconds(name: str, value: object) -> float:
    """The time that an argument called `name` stands for; raises EnvelopeError, a ValueError, when it is none."""
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise EnvelopeError(f"{name} must say its time zone, as datetime.now(timezone.utc) does; {value} does not")
        return value.timestamp()
    if not _is_number(value):
        raise EnvelopeError(f"{name} must be a datetime with a time zone or a number of Unix seconds, not {value!r}")
    return float(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
