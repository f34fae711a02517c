"""One line of the benchmark report: ours, others doing the same work, and the bare limit, from one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class Row:
    """Rates, all per second unless `unit` says otherwise. An anchor is None when it is not installed.

    `bare` is None when nothing is barer. `target` says what is to be reached, as ratios: machines differ.
    """

    name: str
    ours: float
    anchors: Mapping[str, float | None] = field(default_factory=dict)
    bare: float | None = None
    target: str = ""
    unit: str = "/s"

    def __str__(self) -> str:
        parts = [f"{self.name:<44} {rate(self.ours, self.unit):>10}"]
        if self.bare is not None:
            parts.append(f"bare {rate(self.bare, self.unit)} ({self.ours / self.bare:.2f}x)")
        for name, anchor in self.anchors.items():
            parts.append(
                f"{name} is missing"
                if anchor is None
                else f"{name} {rate(anchor, self.unit)} ({self.ours / anchor:.1f}x)"
            )
        if self.target:
            parts.append(f"target {self.target}")
        return "  ".join(parts)


def show(rows: Iterable[Row]) -> None:
    """Print the rows, one a line."""
    for row in rows:
        print(row)


def rate(value: float, unit: str = "/s") -> str:
    """A rate, or another quantity, for people: three digits and a unit."""
    for prefix, size in (("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:  # what is shown as 1000 of the smaller unit
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
