"""Columns, put into as few tables as fit the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

GAP = 2
"""Spaces between two columns."""

LABEL_WIDTH = 36
"""Of a method's name; longer ones are broken."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A title, of one line or several, and a cell per row; both may hold Rich's markup."""

    title: str
    cells: Sequence[str]
    justify: Literal["left", "right"] = "right"

    @property
    def width(self) -> int:
        lines = [line for cell in (self.title, *self.cells) for line in cell.split("\n")]
        return max(cell_len(Text.from_markup(line).plain) for line in lines)


def fitted(head: Sequence[Column], columns: Sequence[Column], width: int) -> list[Table]:
    """As few tables as are no wider than that; the `head` columns begin each of them."""
    begin = sum(min(column.width, LABEL_WIDTH) + GAP for column in head)
    blocks: list[list[Column]] = [[]]
    used = begin
    for column in columns:
        if blocks[-1] and used + column.width > width:
            blocks.append([])
            used = begin
        blocks[-1].append(column)
        used += column.width + GAP
    return [_table(head, block) for block in blocks]


def _table(head: Sequence[Column], columns: Sequence[Column]) -> Table:
    lines = max(column.title.count("\n") for column in (*head, *columns))
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for column in head:
        title = "\n" * (lines - column.title.count("\n")) + column.title
        table.add_column(title, max_width=LABEL_WIDTH, overflow="fold")
    for column in columns:
        title = "\n" * (lines - column.title.count("\n")) + column.title
        table.add_column(title, justify=column.justify, no_wrap=True)
    for row in zip(*(column.cells for column in (*head, *columns)), strict=True):
        table.add_row(*row)
    return table
