"""The agenda: when delayed entries are due, as far as the fetches told; asked and kept at the cost of a fetch.

A fetch gives one time for all the groups that it asked for, so they stand in the agenda together.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Group = tuple[str, str]

SLACK = 64
"""Crossed out lines that an agenda may hold beside one for each group."""


class Agenda:
    """Lines of (time, groups), the earliest first. A group stands in one line; a line without groups is crossed out."""

    def __init__(self) -> None:
        self._lines: list[tuple[float, int, set[Group]]] = []
        self._line_of: dict[Group, set[Group]] = {}
        self._written = 0

    def note(self, groups: Sequence[Group], due: float | None) -> None:
        """The next delayed entry of these groups together is due at that time; None for none."""
        if self._line_of:
            for group in groups:
                line = self._line_of.pop(group, None)
                if line is not None:
                    line.discard(group)
        if due is not None:
            line = set(groups)
            self._line_of.update(dict.fromkeys(line, line))
            self._written += 1
            heapq.heappush(self._lines, (due, self._written, line))
            if len(self._lines) > len(self._line_of) + SLACK:
                self._lines = [entry for entry in self._lines if entry[2]]
                heapq.heapify(self._lines)

    @property
    def size(self) -> int:
        """How many lines it holds, crossed out ones included."""
        return len(self._lines)

    def next_due(self) -> float:
        """The earliest time, `math.inf` when there is none."""
        while self._lines and not self._lines[0][2]:
            heapq.heappop(self._lines)
        return self._lines[0][0] if self._lines else math.inf

    def take_due(self, now: float) -> list[Group]:
        """Cross out what is due, and return its groups."""
        due: list[Group] = []
        while self.next_due() <= now:
            _, _, line = heapq.heappop(self._lines)
            for group in line:
                del self._line_of[group]
            due.extend(line)
        return due
