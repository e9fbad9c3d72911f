"""Results of a sweep: a row per cell, and rows that differ in their seed only."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ..compare.results import deviation
from ..files import whole
from .cells import Cell

SEED = "seed"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one cell came to, at its last evaluation; NaN where a cell that failed has none.

    Args:
        values: the text of each swept setting's value, by the setting's name.
        seconds: virtual, of the whole run.
        bytes: sent by all nodes.
        error: why the run ended badly, if it did.
    """

    cell: str
    values: Mapping[str, str]
    accuracy: float = math.nan
    loss: float = math.nan
    seconds: float = math.nan
    samples: float = math.nan
    staleness_mean: float = math.nan
    staleness_max: float = math.nan
    bytes: float = math.nan
    error: str | None = None

    @property
    def measured(self) -> float:
        """The accuracy, or the loss where the problem has none."""
        return self.loss if math.isnan(self.accuracy) else self.accuracy


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that differ in their seed only."""

    rows: Sequence[Row]

    @property
    def failed(self) -> int:
        return sum(row.error is not None for row in self.rows)

    @property
    def mean(self) -> float:
        return float(np.mean([row.measured for row in self.rows]))

    @property
    def spread(self) -> float:
        """The sample standard deviation; NaN of a single row."""
        return deviation([row.measured for row in self.rows])


def columns_of(cells: Sequence[Cell] | Sequence[Row]) -> dict[str, list[str]]:
    """Every swept setting's values, in order."""
    names = cells[0].values
    return {name: list(dict.fromkeys(cell.values[name] for cell in cells)) for name in names}


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The rows in long form: the swept settings, what was measured, the error."""
    measured = [f.name for f in fields(Row) if f.name not in ("cell", "values")]
    with whole(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["cell", *rows[0].values, *measured])
        for row in rows:
            found = [getattr(row, name) for name in measured]
            told = ["" if value is None else value for value in found]
            writer.writerow([row.cell, *row.values.values(), *told])
