"""Search: which learning rates are tried, and which of them is chosen.

A search is a generator of rounds. It yields the (label, rate) pairs to be tried next, all of which
may run at once, and is sent the trials that came of them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .results import Trial

HALF_DECADES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""The default grid of learning rates."""

EDGE = 0.05
"""A rate this close to an end of a continuous range, as a share of it in logarithms, is at it."""

Search = Generator[list[tuple[str, float]], list[Trial], None]


def grid_search(labels: Sequence[str], rates: Sequence[float]) -> Search:
    """Every rate for every label, in one round."""
    yield [(label, rate) for label in labels for rate in rates]


def tpe_search(labels: Sequence[str], rates: Sequence[float], trials: int, seed: int) -> Search:
    """`trials` rounds of one rate per label, log-uniform between the least and greatest of `rates`.

    A tree-structured Parzen estimator per label (Bergstra et al. 2011), by Optuna; the first third
    of the rates is drawn at random, and is the same for all labels. A round asks for one rate of
    each label, so that what is learnt does not depend on which run ends first. Rates are rounded
    to three digits: the rate in a table is the one that ran.
    """
    # Here, because it takes a second to import.
    import optuna

    least, greatest = min(rates), max(rates)
    with _quiet(optuna):
        studies = {
            label: optuna.create_study(
                direction="maximize",
                sampler=optuna.samplers.TPESampler(
                    seed=seed, n_startup_trials=max(1, math.ceil(trials / 3))
                ),
            )
            for label in labels
        }
    for _ in range(trials):
        asked = {label: study.ask() for label, study in studies.items()}
        proposed = {
            label: _rounded(one.suggest_float("rate", least, greatest, log=True), least, greatest)
            for label, one in asked.items()
        }
        tried = yield list(proposed.items())
        for label, study in studies.items():
            scores = [trial.score for trial in tried if trial.label == label]
            accuracy, loss = np.mean(scores, axis=0)
            if not math.isfinite(accuracy):
                # Ranked below all that ended well.
                study.tell(asked[label], state=optuna.trial.TrialState.PRUNED)
            else:
                # Where there is no accuracy it counts as 0, and the loss decides.
                study.tell(asked[label], float(accuracy) or float(loss))


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


def at_edge(rate: float | None, rates: Sequence[float], *, continuous: bool) -> bool:
    """Whether a better rate may lie beyond the grid, or beyond a continuous range."""
    least, greatest = min(rates), max(rates)
    if rate is None or least == greatest:
        return False
    margin = EDGE * math.log(greatest / least) if continuous else 0.0
    return math.log(rate / least) <= margin or math.log(greatest / rate) <= margin


def _rounded(rate: float, least: float, greatest: float) -> float:
    return min(max(float(f"{rate:.3g}"), least), greatest)


@contextmanager
def _quiet(optuna: Any) -> Generator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
