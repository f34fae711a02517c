"""Portions: what goes to the store at a time, bounded in number and in bytes. One item always goes, however large."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from omniactors.errors import BackendRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from omniactors.streams.settlement import Publication, Settlement

T = TypeVar("T")

PORTION_BYTES: Final = 8 << 20
"""Far below what any store takes at once, and enough that its fixed costs do not show."""


def portions(
    items: Sequence[T], weigh: Callable[[T], int], *, count: int, size: int = PORTION_BYTES
) -> Iterator[Sequence[T]]:
    """The items in their order, cut so that no portion has more than `count` of them, nor more than `size` bytes."""
    start = total = 0
    for place, item in enumerate(items):
        weight = weigh(item)
        if place > start and (place - start == count or total + weight > size):
            yield items[start:place]
            start, total = place, 0
        total += weight
    if start < len(items):
        yield items[start:]


def publication_weight(publication: Publication) -> int:
    """Bytes that it takes, about; raises BackendRefused when its body is none that a store takes."""
    if not isinstance(publication.body, bytes):
        raise BackendRefused(f"the body of an event must be bytes, not {type(publication.body).__name__}")
    return len(publication.body)


def settlement_weight(settlement: Settlement) -> int:
    """Bytes that it takes, about."""
    record, publications = settlement.result, settlement.publications
    weight = len(record.result) if record is not None and type(record.result) is msgspec.Raw else 0
    return weight + sum(map(publication_weight, publications)) if publications else weight
