"""Records of others: one that cannot be read is left out and told once, and keeps nobody from the rest."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

R = TypeVar("R")
T = TypeVar("T")

logger = logging.getLogger("omniactors.streams")


def read_all(read: Callable[[R], T], records: Iterable[R], what: str) -> list[T]:
    """What `read` makes of each record, without those that it cannot read; `what` they are, in the plural."""
    found = []
    for record in records:
        try:
            found.append(read(record))
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            _tell(what, repr(record), str(error))
    return found


@functools.lru_cache(maxsize=256)  # so that it is told once, not at each look
def _tell(what: str, record: str, problem: str) -> None:
    logger.warning("one of the %s cannot be read and is left out: %s (%.200s)", what, problem, record)
