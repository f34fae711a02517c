"""Entry ids: 64-bit integers that only grow, shown as `<milliseconds>-<sequence>`.

Pure. The upper 43 bits are the wall clock's milliseconds when the id was made, unless the clock
went back: then they are those of the newest id there is.
"""

from __future__ import annotations

from typing import Final

_SEQUENCE_BITS: Final = 20
_LAST_MILLISECOND: Final = (1 << 43) - 1


def first_id(last: int, now: float) -> int:
    """The id that follows `last` (0 when there is none) at `now`, in Unix seconds; add 1 for each next one."""
    milliseconds = min(max(int(now * 1000), 0), _LAST_MILLISECOND)
    return max(last + 1, milliseconds << _SEQUENCE_BITS)


def show_id(number: int) -> str:
    """`number` as users and other programs see it."""
    return f"{number >> _SEQUENCE_BITS}-{number & ((1 << _SEQUENCE_BITS) - 1)}"


def read_id(text: str) -> int:
    """The number behind a shown id; -1, which no entry has, when it is none."""
    milliseconds, _, sequence = text.partition("-")
    try:
        return int(milliseconds) << _SEQUENCE_BITS | int(sequence)
    except ValueError:
        return -1


def unix_time(number: int) -> float:
    """When the id was made, in Unix seconds."""
    return (number >> _SEQUENCE_BITS) / 1000
