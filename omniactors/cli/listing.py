"""Listing rule: rows are a table, and one under another where the terminal is too narrow for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from omniactors.cli.output import PIPE_WIDTH, safe, stdout

if TYPE_CHECKING:
    from rich.console import Console

Cell = str | Text
"""A text of anybody's, or one that is styled and safe already."""


class Listing:
    """Rows of names and, right of them, of numbers.

    Rows in which the first name is the same belong together: it is shown once, and with it the
    first `shared` numbers.
    """

    def __init__(self, *names: str, numbers: tuple[str, ...] = (), shared: int = 0) -> None:
        self._names = names
        self._numbers = numbers
        self._shared = range(len(names), len(names) + shared)
        self._rows: list[list[Text]] = []

    def add(self, *cells: Cell) -> None:
        """Add a row; cells that are missing at its end stay empty."""
        row = [cell if isinstance(cell, Text) else Text(safe(cell)) for cell in cells]
        self._rows.append(row + [Text()] * (len(self._names) + len(self._numbers) - len(row)))

    def print(self) -> None:
        """Write it to stdout."""
        console = stdout()
        table = self._table()
        boundless = console.options.update_width(PIPE_WIDTH)
        if Measurement.get(console, boundless, table).maximum <= console.width:
            console.print(table)
        else:
            self._print_stacked(console)

    def _table(self) -> Table:
        table = Table(box=None, header_style="dim", pad_edge=False)
        for name in self._names:
            table.add_column(name)
        for number in self._numbers:
            table.add_column(number, justify="right")
        first = None
        for row in self._rows:
            is_more = bool(self._numbers) and row[0] == first
            first = row[0]
            table.add_row(
                *(Text() if is_more and (i == 0 or i in self._shared) else cell for i, cell in enumerate(row))
            )
        return table

    def _print_stacked(self, console: Console) -> None:
        width = max(map(len, (*self._names[1:], *self._numbers)))
        for row in self._rows:
            console.print(row[0], overflow="fold")
            for label, cell in zip((*self._names[1:], *self._numbers), row[1:], strict=True):
                if cell:
                    console.print(Text.assemble((f"  {label.lower():<{width}}  ", "dim"), cell), overflow="fold")
