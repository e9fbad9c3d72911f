"""Simulated against real: the same experiments, with the cluster's compute times injected.

    python benchmarks/injected.py

Each gradient of the real processes sleeps out what the cluster says it takes, so that two cores
carry four workers. The two columns differ by what the simulator leaves out.
"""

from __future__ import annotations

import functools
import os
import statistics

import numpy as np
import torch

import offbeat
from offbeat.cluster import Lognormal
from offbeat.methods import ADPSGD, AllReduceSGD, AsyncSGD, StochasticGradientPush
from offbeat.runs import Run

METHODS = (AllReduceSGD(), AsyncSGD(), ADPSGD(), StochasticGradientPush())
CLUSTER = offbeat.Cluster(workers=4, compute=Lognormal(seconds=0.04, sigma=0.3), slow={0: 2.0})
SAMPLES = 6400
REPEATS = 3


def seconds_to(share: float, run: Run) -> float:
    """When that share of the budget's gradients had been computed, in seconds."""
    ends = np.sort(run.trace.gradients["end_ns"])
    batch = run.experiment.problem.batch_size
    return float(ends[round(share * SAMPLES / batch) - 1]) / 1e9


def main() -> None:
    settings = {
        "problem": offbeat.problems.Digits(),
        "cluster": CLUSTER,
        "optimizer": functools.partial(torch.optim.SGD, lr=0.1),
        "budget": offbeat.Budget(samples=SAMPLES),
    }
    print(f"{CLUSTER.workers} workers as processes on {os.cpu_count()} cores, {SAMPLES:,} samples,")
    print(f"{CLUSTER.compute}, worker 0 twice as slow; seconds to 95 % of the samples:\n")
    print("| method | simulated | measured, median of 3 | measured / simulated |")
    print("|---|---|---|---|")
    notes: list[str] = []
    for method in METHODS:
        simulated = seconds_to(0.95, offbeat.simulate(method, **settings))
        runs = [offbeat.run(method, inject=True, **settings) for _ in range(REPEATS)]
        measured = statistics.median(seconds_to(0.95, run) for run in runs)
        notes += [f"{type(method).__name__}, {note}" for run in runs for note in run.notes]
        print(
            f"| {type(method).__name__} | {simulated:.2f} | {measured:.2f} | "
            f"{measured / simulated:.3f} |",
            flush=True,
        )
    print("", *notes, sep="\n")


if __name__ == "__main__":
    main()
