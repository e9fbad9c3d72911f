"""The comparison as a table and as CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from ..compare import Comparison, Entry


def comparison_table(comparison: Comparison) -> Table:
    """What asynchrony buys and costs, one line per method."""
    target = f"{comparison.target:.0%}"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("\nmethod", max_width=36, overflow="fold")
    columns = (
        "learning\nrate",
        "test\naccuracy",
        f"seconds\nto {target}",
        f"samples\nto {target}",
        "sent\nMB",
        "staleness\nmean",
        "\nmax",
        "idle\nshare",
        "consensus\ndistance",
    )
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for entry in comparison.entries:
        table.add_row(entry.label, *_cells(entry))
    return table


def footnotes(comparison: Comparison) -> list[str]:
    """What the table's marks mean, and why a method has no result."""
    notes: list[str] = []
    if any(entry.at_edge for entry in comparison.entries):
        notes.append("* at the edge of the grid: a better rate may lie beyond; widen --rates")
    missed = [e.label for e in comparison.entries if e.runs and e.reached < len(e.runs)]
    if missed:
        goal = f"{comparison.target:.0%} test accuracy"
        notes.append(f"not reached: {', '.join(missed)} did not get to {goal} within the budget")
    notes += [f"{e.label}: {e.error}" for e in comparison.entries if e.error]
    for entry in comparison.entries:
        lost = sorted({trial.rate for trial in entry.trials if trial.error})
        if lost and entry.rate is not None:
            rates = ", ".join(f"{rate:g}" for rate in lost)
            notes.append(f"{entry.label}: failed at learning rate {rates} of the grid")
    return notes


def write_csv(comparison: Comparison, directory: Path) -> None:
    """comparison.csv, a row per final run, and grid.csv, a row per run of the search."""
    rows: list[dict[str, object]] = [
        {
            "method": entry.label,
            "family": entry.method.family,
            "seed": run.experiment.seed,
            "rate": entry.rate,
            "rate_at_edge": entry.at_edge,
            **entry.row(run),
            "error": run.error or "",
        }
        for entry in comparison.entries
        for run in entry.runs
    ]
    for entry in comparison.entries:
        if not entry.runs:
            rows.append(
                {"method": entry.label, "family": entry.method.family, "error": entry.error}
            )
    _write(directory / "comparison.csv", rows)
    trials = [
        {
            "method": trial.label,
            "rate": trial.rate,
            "seed": trial.seed,
            "validation_accuracy": trial.accuracy,
            "validation_loss": trial.loss,
            "error": trial.error or "",
        }
        for entry in comparison.entries
        for trial in entry.trials
    ]
    _write(directory / "grid.csv", trials)


def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    names = list(max(rows, key=len, default={}))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _cells(entry: Entry) -> list[str]:
    if entry.rate is None or not entry.runs:
        return ["failed" if entry.trials else "", *[""] * 8]
    mean = entry.mean()
    met = entry.reached == len(entry.runs)
    missed = "not reached" if len(entry.runs) == 1 else f"{entry.reached} of {len(entry.runs)}"
    accuracy = f"{mean['accuracy']:.1%}" if not math.isnan(mean["accuracy"]) else "-"
    return [
        f"{entry.rate:g}{'*' if entry.at_edge else ''}",
        accuracy if entry.error is None else f"{accuracy}, failed",
        f"{mean['seconds_to_target']:.2f}" if met else f"[red]{missed}[/red]",
        f"{mean['samples_to_target']:,.0f}" if met else "",
        f"{mean['bytes'] / 1e6:.1f}",
        f"{mean['staleness_mean']:.1f}",
        f"{mean['staleness_max']:.0f}",
        f"{mean['idle_share']:.0%}",
        # Equal parameters have a mean that is off by rounding.
        f"{mean['consensus']:.2g}" if mean["consensus"] > 1e-5 else "0",
    ]
