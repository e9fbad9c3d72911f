"""Comparing methods, each at the learning rate of a common grid that suits it best.

The rate is chosen on the validation part of the data, among equal budgets; the run that counts is
a further one, judged on the test part.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from .experiment import Experiment, optimizer_class
from .method import Method
from .run import Run
from .runtime.simulated import Simulation

HALF_DECADES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""The default grid of learning rates."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One cell of the grid: a method at a rate under a seed, judged on the validation part."""

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
        rate: the chosen learning rate; None if every rate failed.
        at_edge: whether that is the least or the greatest of the grid: a better one may lie beyond.
        trials: the search for it.
        runs: one per seed, at that rate, judged on the test part.
        target: the accuracy to be reached.
        error: why there is no result, or not all of it.
    """

    label: str
    method: Method
    rate: float | None
    at_edge: bool
    trials: list[Trial]
    runs: list[Run]
    target: float
    error: str | None = None

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

    @property
    def reached(self) -> int:
        """How many of the runs reached the target."""
        return sum(run.reached(self.target) is not None for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods side by side, in the order in which they were given."""

    entries: list[Entry]
    experiment: Experiment
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    target: float
    interrupted: bool = False


def compare(
    methods: Mapping[str, Method],
    experiment: Experiment,
    *,
    rates: Sequence[float] = HALF_DECADES,
    target: float = 0.93,
    seeds: Sequence[int] = (0,),
    jobs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Choose each method's rate on the validation part, then judge it on the test part.

    Args:
        methods: by the names they are listed under.
        experiment: everything but method, learning rate, seed and what evaluations use.
        rates: the grid, the same for all.
        target: the test accuracy that time and samples are counted to.
        seeds: every run is made under each of them.
        jobs: processes that share the work; 1 for none but this one.
        progress: called with the label of each run that has ended.

    A run that fails, by a loss that is not finite or otherwise, is marked and does not stop the
    others.

    Interrupted, it returns what has been finished.

    Raises:
        ValueError: in one line, for whatever cannot work.
    """
    grid = tuple(sorted(set(rates)))
    _check(methods, grid, target, seeds)
    # Built before anything runs: what cannot work is refused here.
    searches = [
        (name, rate, seed, _at(experiment, method, rate, seed, "validation"))
        for name, method in methods.items()
        for rate in grid
        for seed in seeds
    ]
    tell = progress or _ignore
    trials: dict[str, list[Trial]] = {name: [] for name in methods}
    chosen: dict[str, float | None] = dict.fromkeys(methods)
    outcomes: dict[str, list[Run | str]] = {name: [] for name in methods}
    interrupted = False
    try:
        with _Executor(jobs) as execute:
            for trial in execute(_try, searches):
                trials[trial.label].append(trial)
                tell(trial.label)
            chosen = {name: best_rate(tried) for name, tried in trials.items()}
            finals = [
                (name, _at(experiment, methods[name], rate, seed, "test"))
                for name, rate in chosen.items()
                if rate is not None
                for seed in seeds
            ]
            for name, outcome in execute(_finish, finals):
                outcomes[name].append(outcome)
                tell(name)
    except KeyboardInterrupt:
        interrupted = True
    entries = [
        Entry(
            label=name,
            method=method,
            rate=chosen[name],
            at_edge=len(grid) > 1 and chosen[name] in (grid[0], grid[-1]),
            trials=trials[name],
            runs=[o for o in outcomes[name] if not isinstance(o, str)],
            target=target,
            error=_reason(chosen[name], trials[name], outcomes[name], interrupted, len(seeds)),
        )
        for name, method in methods.items()
    ]
    return Comparison(
        entries=entries,
        experiment=experiment,
        rates=grid,
        seeds=tuple(seeds),
        target=target,
        interrupted=interrupted,
    )


def best_rate(trials: Iterable[Trial]) -> float | None:
    """The rate with the best mean score over the seeds; the lower of equals; None if all failed."""
    by_rate: dict[float, list[Trial]] = {}
    for trial in trials:
        by_rate.setdefault(trial.rate, []).append(trial)

    def score(rate: float) -> tuple[float, float, float]:
        scores = np.mean([trial.score for trial in by_rate[rate]], axis=0)
        return float(scores[0]), float(scores[1]), -rate

    usable = [r for r, tried in by_rate.items() if all(math.isfinite(t.score[0]) for t in tried)]
    return max(usable, key=score, default=None)


def _check(
    methods: Mapping[str, Method], rates: Sequence[float], target: float, seeds: Sequence[int]
) -> None:
    if not methods:
        raise ValueError("there is no method to compare")
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"rates are {', '.join(map(str, rates))}; give positive numbers")
    if not 0 < target <= 1:
        raise ValueError(f"target is {target:g}; an accuracy is from 0 to 1")
    if not seeds:
        raise ValueError("there is no seed to compare under")


def _at(experiment: Experiment, method: Method, rate: float, seed: int, part: Any) -> Experiment:
    """The experiment of one method at one rate."""
    settings = getattr(experiment.optimizer, "keywords", {})
    optimizer = functools.partial(optimizer_class(experiment.optimizer), **{**settings, "lr": rate})
    return dataclasses.replace(
        experiment, method=method, optimizer=optimizer, seed=seed, evaluate_on=part
    )


def _try(search: tuple[str, float, int, Experiment]) -> Trial:
    label, rate, seed, experiment = search
    # Only the last evaluation counts here.
    never = 2 * (experiment.budget.samples or 1 << 60)
    if experiment.budget.accuracy is None:
        experiment = dataclasses.replace(experiment, evaluate_every=never)
    outcome = _simulate(experiment)
    if isinstance(outcome, str):
        return Trial(label=label, rate=rate, seed=seed, error=outcome)
    last = outcome.metrics[-1]
    return Trial(
        label=label,
        rate=rate,
        seed=seed,
        loss=last.loss,
        accuracy=last.accuracy,
        error=outcome.error,
    )


def _finish(final: tuple[str, Experiment]) -> tuple[str, Run | str]:
    name, experiment = final
    return name, _simulate(experiment)


def _simulate(experiment: Experiment) -> Run | str:
    """The run, or why there is none: a method that raises must not stop the others."""
    try:
        run = Simulation(experiment).run()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    if run.stop == "interrupted":
        raise KeyboardInterrupt
    return run


def _reason(
    rate: float | None,
    trials: Sequence[Trial],
    outcomes: Sequence[Run | str],
    interrupted: bool,
    seeds: int,
) -> str | None:
    errors = [o if isinstance(o, str) else o.error for o in outcomes]
    failed = next((error for error in errors if error), None)
    if failed is not None:
        return failed
    if interrupted and len(outcomes) < seeds:
        return "interrupted"
    if rate is None:
        last = next((trial.error for trial in trials if trial.error), "the loss was not finite")
        return f"failed at every rate: {last}"
    return None


class _Executor:
    """`execute(function, items)`: results in the order of items, here or on processes."""

    def __init__(self, jobs: int) -> None:
        self._pool: ProcessPoolExecutor | None = None
        if jobs > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(jobs, context, _leave_interrupts_to_parent)

    def __enter__(self) -> Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]:
        return map if self._pool is None else self._pool.map  # pyright: ignore[reportReturnType]

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _ignore(label: str) -> None:
    pass
