"""Nearness: which name somebody may have meant."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def near(name: str, known: Iterable[str]) -> str:
    """A question that follows an error, or nothing when no name is near."""
    found = difflib.get_close_matches(name, sorted(set(known) - {name}), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
