"""The comparison as tables and as CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from ..compare import Comparison, Entry
from ..compare.results import deviation, evaluation_at
from ..runs import Run
from .columns import Column, fitted


def comparison_tables(comparison: Comparison, width: int = 130) -> list[Table]:
    """What asynchrony buys and costs, one line per method: the fewest tables of that width."""
    entries = comparison.entries
    varying = dict.fromkeys(name for entry in entries for name in entry.varying)
    head = [Column(title="method", cells=[escape(entry.label) for entry in entries])]
    head += [
        Column(
            title=name.replace(".", ".\n"),
            cells=[escape(e.varying.get(name, "")) for e in entries],
        )
        for name in varying
    ]
    rows = [_cells(comparison, entry) for entry in entries]
    columns = [
        Column(title=title, cells=[row.get(title, "") for row in rows])
        for title in _titles(comparison)
    ]
    return fitted(head, columns, width)


def footnotes(comparison: Comparison) -> list[str]:
    """What the table's marks mean, and why a method has no result."""
    notes: list[str] = []
    entries, seconds = comparison.entries, comparison.seconds
    if any(len(entry.runs) > 1 for entry in entries):
        notes.append(
            f"± is the sample standard deviation over {len(comparison.seeds)} seeds; other numbers "
            "are means over them, and the greatest staleness"
        )
    if any(entry.at_edge for entry in entries):
        tried = "grid" if comparison.tune == "grid" else "range"
        notes.append(f"* at the edge of the {tried}: a better rate may lie beyond; widen --rates")
    if seconds is not None and any(_ended_before(entry, seconds) for entry in entries):
        notes.append(f"† ended before {_seconds(seconds)} s: its last evaluation")
    missed = [e.label for e in entries if e.runs and e.reached < len(e.runs)]
    if missed and comparison.measure == "accuracy":
        goal = f"{comparison.target:.0%} {comparison.judged_on} accuracy"
        notes.append(f"not reached: {', '.join(missed)} did not get to {goal} within the budget")
    notes += [f"{e.label}: {e.error}" for e in entries if e.error]
    for entry in entries:
        lost = sorted({trial.rate for trial in entry.trials if trial.error})
        if lost and entry.rate is not None:
            rates = ", ".join(f"{rate:g}" for rate in lost)
            tried = "the grid" if comparison.tune == "grid" else "those tried"
            notes.append(f"{entry.label}: failed at learning rate {rates} of {tried}")
    return notes + list(comparison.notes)


def write_csv(comparison: Comparison, directory: Path) -> None:
    """comparison.csv, a row per final run, and grid.csv, a row per run of the search if any."""
    seconds = comparison.seconds
    rows: list[dict[str, object]] = [
        {
            "method": entry.label,
            "family": entry.method.family,
            "seed": run.experiment.seed,
            "rate": entry.rate,
            "rate_at_edge": entry.at_edge,
            **entry.varying,
            **entry.row(run),
            **({} if seconds is None else _row_at(run, seconds)),
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
    if trials:
        _write(directory / "grid.csv", trials)


def _row_at(run: Run, seconds: float) -> dict[str, float]:
    row = evaluation_at(run, seconds)
    return {
        "common_seconds": seconds,
        "accuracy_at_common_seconds": row.accuracy,
        "loss_at_common_seconds": row.loss,
    }


def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    names = list(max(rows, key=len, default={}))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _titles(comparison: Comparison) -> list[str]:
    part, target = comparison.judged_on, f"{comparison.target:.0%}"
    titles = ["learning\nrate", f"{part}\n{comparison.measure}"]
    if comparison.seconds is not None:
        titles.append(f"{comparison.measure}\nat {_seconds(comparison.seconds)} s")
    if comparison.measure == "accuracy":
        titles += [f"seconds\nto {target}", f"samples\nto {target}"]
    return [
        *titles,
        "sent\nMB",
        "staleness\nmean",
        "staleness\nmax",
        "idle\nshare",
        "consensus\ndistance",
    ]


def _cells(comparison: Comparison, entry: Entry) -> dict[str, str]:
    """By the column's title."""
    first, judged, *rest = _titles(comparison)
    if entry.rate is None or not entry.runs:
        return {first: "" if entry.error == "interrupted" else "[red]failed[/red]"}
    mean, spread = entry.mean(), entry.spread()
    measure = comparison.measure
    final = measured(measure, mean[measure], spread[measure])
    cells = {
        first: f"{entry.rate:g}{'*' if entry.at_edge else ''}",
        judged: final if entry.error is None else f"{final}, [red]failed[/red]",
    }
    if comparison.seconds is not None:
        cells[rest.pop(0)] = _at_common_time(comparison, entry, comparison.seconds)
    if measure == "accuracy":
        met = entry.reached == len(entry.runs)
        missed = "not reached" if len(entry.runs) == 1 else f"{entry.reached} of {len(entry.runs)}"
        seconds = _spread(mean["seconds_to_target"], spread["seconds_to_target"], ".2f")
        samples = _spread(mean["samples_to_target"], spread["samples_to_target"], ",.0f")
        cells[rest.pop(0)] = seconds if met else f"[red]{missed}[/red]"
        cells[rest.pop(0)] = samples if met else ""
    costs = (
        f"{mean['bytes'] / 1e6:.1f}",
        f"{mean['staleness_mean']:.1f}",
        f"{mean['staleness_max']:.0f}",
        f"{mean['idle_share']:.0%}",
        # Equal parameters have a mean that is off by rounding.
        f"{mean['consensus']:.2g}" if mean["consensus"] > 1e-5 else "0",
    )
    return cells | dict(zip(rest, costs, strict=True))


def _at_common_time(comparison: Comparison, entry: Entry, seconds: float) -> str:
    rows = [evaluation_at(run, seconds) for run in entry.runs]
    values = [getattr(row, comparison.measure) for row in rows]
    text = measured(comparison.measure, float(np.mean(values)), deviation(values))
    return f"{text}†" if _ended_before(entry, seconds) else text


def _ended_before(entry: Entry, seconds: float) -> bool:
    return any(run.metrics[-1].seconds < seconds for run in entry.runs)


def measured(measure: str, mean: float, spread: float) -> str:
    """An accuracy or a loss, with its spread unless that is NaN."""
    if math.isnan(mean):
        return "-"
    if measure == "loss":
        return _spread(mean, spread, ".3g")
    return f"{mean:.1%}" if math.isnan(spread) else f"{mean:.1%} ± {100 * spread:.1f}"


def _spread(mean: float, spread: float, form: str) -> str:
    return f"{mean:{form}}" if math.isnan(spread) else f"{mean:{form}} ± {spread:{form}}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds >= 0.1 else f"{seconds:.2g}"
