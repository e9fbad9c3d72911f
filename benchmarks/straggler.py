"""One worker is four times slower: when do asynchronous methods get to where all-reduce ends?

    python benchmarks/straggler.py
    python benchmarks/straggler.py --quick

Four worker processes on the handwritten digits. Each gradient sleeps out what the cluster says it
takes, so that two cores carry them. Rates are chosen as common/contest.py says, and the goal is
that of common/goals.py; accuracies are those on the test part.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import torch
from common import options
from common.contest import in_turns, print_notes, tune
from common.goals import REFERENCE, as_json, lasted, ratio, table, times

import offbeat
from offbeat.api import run_experiment
from offbeat.cluster import Lognormal
from offbeat.method import Method
from offbeat.methods import ADPSGD, AllReduceSGD, AsyncSGD
from offbeat.runs import Run

METHODS: dict[str, Method] = {
    "AllReduceSGD": AllReduceSGD(),
    "AsyncSGD": AsyncSGD(),
    "ADPSGD": ADPSGD(),
}
EXPECTED = 0.45
"""The median ratio of times that is hoped for, at most."""
CLUSTER = offbeat.Cluster(workers=4, compute=Lognormal(seconds=0.02, sigma=0.2), slow={0: 4.0})


def experiment(samples: int) -> offbeat.Experiment:
    return offbeat.Experiment(
        method=METHODS[REFERENCE],
        problem=offbeat.problems.Digits(),
        cluster=CLUSTER,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        budget=offbeat.Budget(samples=samples),
        evaluate_every=256,
        inject=True,
    )


def for_real(simulated: Run) -> Run:
    """The same experiment as processes.

    Raises:
        RuntimeError: it ended badly.
    """
    run = run_experiment(simulated.experiment)
    if run.error is not None:
        raise RuntimeError(f"{type(run.experiment.method).__name__}: {run.error}")
    return run


def main(arguments: Sequence[str] | None = None) -> None:
    asked = options.parser(__doc__).parse_args(arguments)
    seeds = range(1) if asked.quick else range(5)
    chosen = experiment(samples=1_280 if asked.quick else 30_000)
    tuned = tune(METHODS, chosen, seeds=seeds, quick=asked.quick)
    runs = in_turns(tuned, for_real)
    simulated = times({entry.label: entry.runs for entry in tuned.entries})
    measured = times(runs)
    workers, cores = CLUSTER.workers, os.cpu_count()
    print(f"\n{workers} workers as processes on {cores} cores, {CLUSTER.compute},")
    print(f"worker 0 four times slower; {chosen.budget.samples:,} samples, {len(seeds)} seeds\n")
    print(table(tuned, simulated, measured), end="\n\n")
    for name in METHODS:
        longer = lasted(measured, name) / lasted(simulated, name)
        print(f"{name}: whole runs lasted {longer:.2f} times as long as simulated")
        print_notes(name, runs[name])
        if name != REFERENCE:
            own = ratio(measured, name)
            verdict = "met" if own <= EXPECTED else "not met"
            print(f"{name}: {own:.2f} of all-reduce's time (expected {EXPECTED}: {verdict})")
    options.write(as_json(tuned, simulated, measured), asked.out)


if __name__ == "__main__":
    main()
