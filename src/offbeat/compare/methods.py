"""Methods: each at the learning rate that suits it best, then side by side.

The rate is chosen on the validation part of the data, among equal budgets; the run that counts is
a further one, judged on the test part.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..experiment import Experiment, optimizer_class
from ..method import Method
from ..parallel import shared
from ..runs import Run
from ..runtime.simulated import Simulation
from .results import Comparison, Entry, Trial, Tune, common_seconds
from .search import HALF_DECADES, Search, at_edge, best_rate, grid_search, tpe_search


def compare(
    methods: Mapping[str, Method],
    experiment: Experiment,
    *,
    rates: Sequence[float] = HALF_DECADES,
    tune: Tune = "grid",
    trials: int = 20,
    target: float = 0.93,
    seeds: Sequence[int] = (0,),
    seconds: float | None = None,
    jobs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Choose each method's rate on the validation part, then judge it on the test part.

    Args:
        methods: by the names they are listed under.
        experiment: everything but method, learning rate, seed and what evaluations use.
        rates: the grid, the same for all; "optuna" searches between its ends.
        tune: "grid" tries every rate, "optuna" so many as `trials` says by TPE, "none" takes the
            experiment's own.
        trials: rates that "optuna" tries for each method.
        target: the test accuracy that time and samples are counted to.
        seeds: every run is made under each of them.
        seconds: the common time of the comparison at equal time; if not given, that at which the
            fastest run has spent its budget.
        jobs: processes that share the work; 1 for none but this one.
        progress: called with the label of each run that has ended.

    A run that fails, by a loss that is not finite or otherwise, is marked and does not stop the
    others. The result does not depend on `jobs`.

    Interrupted, it returns what has been finished.

    Raises:
        ValueError: in one line, for whatever cannot work.
    """
    own = learning_rate(experiment)
    tried_rates = (own,) if tune == "none" else tuple(sorted(set(rates)))
    _check(methods, tried_rates, seeds, trials)
    check_goals(target, seconds)
    # Built before anything runs: what cannot work is refused here.
    for method in methods.values():
        for rate in tried_rates:
            _at(experiment, method, rate, seeds[0], "validation")
    for seed in seeds:
        dataclasses.replace(experiment, seed=seed)
    tell = progress or _ignore
    tried: dict[str, list[Trial]] = {name: [] for name in methods}
    chosen: dict[str, float | None] = dict.fromkeys(methods)
    outcomes: dict[str, list[Run | str]] = {name: [] for name in methods}
    interrupted = False
    try:
        with shared(jobs) as share:
            search = _search(tune, methods, tried_rates, trials, seeds)
            proposed = next(search, None)
            while proposed is not None:
                asked = [
                    (name, rate, seed, _at(experiment, methods[name], rate, seed, "validation"))
                    for name, rate in proposed
                    for seed in seeds
                ]
                answers: list[Trial] = []
                for trial in share(_try, asked):
                    answers.append(trial)
                    tried[trial.label].append(trial)
                    tell(trial.label)
                proposed = _next_round(search, answers)
            if tune == "none":
                chosen = dict.fromkeys(methods, own)
            else:
                chosen = {name: best_rate(trials) for name, trials in tried.items()}
            finals = [
                (name, _at(experiment, methods[name], rate, seed, "test"))
                for name, rate in chosen.items()
                if rate is not None
                for seed in seeds
            ]
            for name, outcome in share(_finish, finals):
                outcomes[name].append(outcome)
                tell(name)
    except KeyboardInterrupt:
        interrupted = True
    entries = [
        Entry(
            label=name,
            method=method,
            rate=chosen[name],
            at_edge=tune != "none"
            and at_edge(chosen[name], tried_rates, continuous=tune == "optuna"),
            trials=tried[name],
            runs=[o for o in outcomes[name] if not isinstance(o, str)],
            target=target,
            error=_reason(chosen[name], tried[name], outcomes[name], interrupted, len(seeds)),
        )
        for name, method in methods.items()
    ]
    return Comparison(
        entries=entries,
        experiment=experiment,
        rates=() if tune == "none" else tried_rates,
        seeds=tuple(seeds),
        target=target,
        seconds=seconds if seconds is not None else common_seconds(entries),
        tune=tune,
        interrupted=interrupted,
    )


def learning_rate(experiment: Experiment) -> float:
    """The base learning rate that the experiment's optimizer is given, or has by default."""
    settings: Mapping[str, Any] = getattr(experiment.optimizer, "keywords", {})
    if "lr" in settings:
        return float(settings["lr"])
    made = optimizer_class(experiment.optimizer)
    return float(inspect.signature(made).parameters["lr"].default)


def check_goals(target: float, seconds: float | None) -> None:
    """Refuse an accuracy or a common time that cannot be.

    Raises:
        ValueError: in one line.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target is {target:g}; an accuracy is from 0 to 1")
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"the common time is {seconds:g} s; it must be positive")


def _search(
    tune: Tune,
    methods: Mapping[str, Method],
    rates: Sequence[float],
    trials: int,
    seeds: Sequence[int],
) -> Search:
    labels = list(methods)
    if tune == "optuna":
        return tpe_search(labels, rates, trials, seeds[0])
    return grid_search(labels, rates if tune == "grid" else ())


def _next_round(search: Search, answers: list[Trial]) -> list[tuple[str, float]] | None:
    try:
        return search.send(answers)
    except StopIteration:
        return None


def _check(
    methods: Mapping[str, Method],
    rates: Sequence[float],
    seeds: Sequence[int],
    trials: int,
) -> None:
    if not methods:
        raise ValueError("there is no method to compare")
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"rates are {', '.join(map(str, rates))}; give positive numbers")
    if not seeds:
        raise ValueError("there is no seed to compare under")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {', '.join(map(str, seeds))}; give each of them once")
    if trials < 1:
        raise ValueError(f"trials is {trials}; it must be at least 1")


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
    outcome = simulated(experiment)
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
    return name, simulated(experiment)


def simulated(experiment: Experiment) -> Run | str:
    """The run, or why there is none: a method that raises must not stop the others.

    Raises:
        KeyboardInterrupt: as the simulator was interrupted.
    """
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


def _ignore(label: str) -> None:
    pass
