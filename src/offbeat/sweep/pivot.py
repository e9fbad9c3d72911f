"""Pivot: a sweep's means and spreads as tables of rows and columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .results import SEED, Group, Row, columns_of


@dataclass(frozen=True, kw_only=True)
class Pivot:
    """A table of groups: one row per value of a setting, one column per value of another.

    Args:
        fixed: the values of the further settings, which all groups share.
        columns: the other setting's name; None if there is but one setting.
        groups: by (row's value, column's value); the column's is "" if there is but one setting.
    """

    fixed: Mapping[str, str]
    rows: str
    columns: str | None
    row_values: Sequence[str]
    column_values: Sequence[str]
    groups: Mapping[tuple[str, str], Group]


def pivot(
    results: Sequence[Row], rows: str | None = None, columns: str | None = None
) -> list[Pivot]:
    """A table for every combination of the settings that are neither rows, columns nor the seed.

    Args:
        rows: a swept setting; the first that is not the seed if not given.
        columns: another one; the next if not given.

    Raises:
        ValueError: that setting is not swept over.
    """
    over = columns_of(results)
    for option, name in (("rows", rows), ("columns", columns)):
        if name is not None and name not in over:
            raise ValueError(f"--{option} {name} is not swept over; there are {', '.join(over)}")
    if rows is not None and rows == columns:
        raise ValueError(f"--rows and --columns are both {rows}")
    free = [name for name in [*(n for n in over if n != SEED), SEED] if name in over]
    first = rows or next((name for name in free if name != columns), None)
    if first is None:
        raise ValueError(f"--columns {columns} leaves no swept field for the rows")
    rest = [name for name in free if name != first]
    second = columns or (rest[0] if rest and (rest[0] != SEED or first == SEED) else None)
    further = [name for name in over if name not in (first, second, SEED)]
    tables: dict[tuple[str, ...], dict[tuple[str, str], list[Row]]] = {}
    for row in results:
        table = tables.setdefault(tuple(row.values[name] for name in further), {})
        at = (row.values[first], row.values[second] if second else "")
        table.setdefault(at, []).append(row)
    return [
        Pivot(
            fixed=dict(zip(further, key, strict=True)),
            rows=first,
            columns=second,
            row_values=over[first],
            column_values=over[second] if second else [""],
            groups={at: Group(rows=found) for at, found in table.items()},
        )
        for key, table in tables.items()
    ]


def measure_of(results: Sequence[Row]) -> str:
    """What a sweep's tables show: "accuracy", or "loss" where the problem has none."""
    return "loss" if all(math.isnan(row.accuracy) for row in results) else "accuracy"


def text_of(group: Group | None, measure: str) -> str:
    """A group's mean and spread, accuracies in percent; or how many of its runs failed."""
    if group is None:
        return ""
    if group.failed:
        errors = [row.error for row in group.rows if row.error is not None]
        word = "diverged" if all(e.startswith("diverged") for e in errors) else "failed"
        whole = group.failed == len(group.rows)
        return word if whole else f"{group.failed} of {len(group.rows)} {word}"
    mean, spread = group.mean, group.spread
    if any(math.isnan(row.accuracy) for row in group.rows):
        # Where only some problems have no accuracy, the title does not say so.
        prefix = "" if measure == "loss" else "loss "
        text = f"{mean:.3g}" if math.isnan(spread) else f"{mean:.3g} ±{spread:.2g}"
        return f"{prefix}{text}"
    return f"{100 * mean:.1f}" if math.isnan(spread) else f"{100 * mean:.1f} ±{100 * spread:.1f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
