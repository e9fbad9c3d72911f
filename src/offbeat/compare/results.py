"""Results: what a comparison has found, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..experiment import Experiment
from ..method import Method
from ..runs import Metrics, Run

Tune = Literal["grid", "optuna", "none"]
"""How learning rates are chosen: of a grid, by Optuna, or not at all."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A method at a rate under a seed, judged on the validation part."""

    label: str
    rate: float
    seed: int
    loss: float = math.nan
    accuracy: float = math.nan
    error: str | None = None

    @property
    def score(self) -> tuple[float, float]:
        """Greater is better: the accuracy, then the loss; a failed run is below all others."""
        if self.error is not None or not math.isfinite(self.loss):
            return -math.inf, -math.inf
        return (0.0 if math.isnan(self.accuracy) else self.accuracy), -self.loss


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method of a comparison.

    Args:
        rate: the learning rate of its runs; None if every rate failed.
        at_edge: whether that is at an end of the range: a better one may lie beyond.
        trials: the search for it.
        runs: one per seed, at that rate, judged on the test part.
        target: the accuracy to be reached.
        error: why there is no result, or not all of it.
        varying: the fields in which it differs from others on purpose, with its values.
    """

    label: str
    method: Method
    rate: float | None
    at_edge: bool
    trials: list[Trial]
    runs: list[Run]
    target: float
    error: str | None = None
    varying: Mapping[str, str] = field(default_factory=dict[str, str])

    def row(self, run: Run) -> dict[str, float]:
        """What one final run came to, by the columns of the CSV file."""
        last, reached = run.metrics[-1], run.reached(self.target)
        stale = run.staleness
        return {
            "accuracy": last.accuracy,
            "loss": last.loss,
            "seconds": run.seconds,
            "samples": last.samples,
            "seconds_to_target": reached.seconds if reached else math.nan,
            "samples_to_target": reached.samples if reached else math.nan,
            "bytes": last.bytes,
            "staleness_mean": float(stale.mean()) if len(stale) else 0.0,
            "staleness_max": int(stale.max()) if len(stale) else 0,
            "idle_share": 1.0 - float(run.busy.mean()),
            "consensus": last.consensus,
        }

    def mean(self) -> dict[str, float]:
        """`row`, averaged over the seeds; NaN where one missed the target."""
        rows = [self.row(run) for run in self.runs]
        means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        means["staleness_max"] = max(row["staleness_max"] for row in rows)
        return means

    def spread(self) -> dict[str, float]:
        """The sample standard deviation of `row` over the seeds; NaN with one seed."""
        rows = [self.row(run) for run in self.runs]
        return {key: deviation([row[key] for row in rows]) for key in rows[0]}

    @property
    def reached(self) -> int:
        """How many of the runs reached the target."""
        return sum(run.reached(self.target) is not None for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods side by side, in the order in which they were given.

    Args:
        rates: the grid, or the ends of the range, that rates were chosen from; none if they were
            not chosen here.
        seconds: the common time at which runs are also compared; None if nothing was finished.
        tune: how rates were chosen.
        judged_on: the part of the data that the final runs were judged on.
        notes: what a reader should know, a line each.
    """

    entries: list[Entry]
    experiment: Experiment
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    target: float
    seconds: float | None
    tune: Tune = "grid"
    judged_on: Literal["validation", "test"] = "test"
    interrupted: bool = False
    notes: Sequence[str] = ()

    @property
    def measure(self) -> Literal["accuracy", "loss"]:
        """What runs are judged by: the accuracy, or the loss where the problem has none."""
        runs = [run for entry in self.entries for run in entry.runs]
        without = all(math.isnan(row.accuracy) for run in runs for row in run.metrics)
        return "loss" if runs and without else "accuracy"


def evaluation_at(run: Run, seconds: float) -> Metrics:
    """The last evaluation at or before that time."""
    return next((row for row in reversed(run.metrics) if row.seconds <= seconds), run.metrics[0])


def common_seconds(entries: Sequence[Entry]) -> float | None:
    """When the first of all runs that ended well was judged for the last time."""
    ends = [run.metrics[-1].seconds for e in entries for run in e.runs if run.error is None]
    return min(ends, default=None)


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; NaN of a single value."""
    with np.errstate(invalid="ignore"):  # Of runs that failed.
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
