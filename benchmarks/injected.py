"""Simulated against real: the same experiments, with the cluster's compute times injected.

    python benchmarks/injected.py
    python benchmarks/injected.py --quick

Each gradient of the real processes sleeps out what the cluster says it takes, so that two cores
carry four workers. The two columns differ by what the simulator leaves out.
"""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Sequence

import numpy as np
import torch
from common import options

import offbeat
from offbeat.cluster import Lognormal
from offbeat.methods import ADPSGD, AllReduceSGD, AsyncSGD, StochasticGradientPush
from offbeat.runs import Run

METHODS = (AllReduceSGD(), AsyncSGD(), ADPSGD(), StochasticGradientPush())
CLUSTER = offbeat.Cluster(workers=4, compute=Lognormal(seconds=0.04, sigma=0.3), slow={0: 2.0})


def seconds_to(share: float, run: Run) -> float:
    """When that share of the budget's gradients had been computed, in seconds."""
    ends = np.sort(run.trace.gradients["end_ns"])
    return float(ends[round(share * run.experiment.gradients) - 1]) / 1e9


def main(arguments: Sequence[str] | None = None) -> None:
    asked = options.parser(__doc__).parse_args(arguments)
    samples, repeats = (320, 1) if asked.quick else (6400, 3)
    settings = {
        "problem": offbeat.problems.Digits(),
        "cluster": CLUSTER,
        "optimizer": functools.partial(torch.optim.SGD, lr=0.1),
        "budget": offbeat.Budget(samples=samples),
    }
    print(f"{CLUSTER.workers} workers as processes on {os.cpu_count()} cores, {samples:,} samples,")
    print(f"{CLUSTER.compute}, worker 0 twice as slow; seconds to 95 % of the samples:\n")
    print(f"| method | simulated | measured, median of {repeats} | measured / simulated |")
    print("|---|---|---|---|")
    notes: list[str] = []
    figures: dict[str, dict[str, float]] = {}
    for method in METHODS:
        simulated = seconds_to(0.95, offbeat.simulate(method, **settings))
        runs = [offbeat.run(method, inject=True, **settings) for _ in range(repeats)]
        measured = statistics.median(seconds_to(0.95, run) for run in runs)
        name = type(method).__name__
        notes += [f"{name}, {note}" for run in runs for note in run.notes]
        figures[name] = {"simulated": simulated, "measured": measured}
        ratio = measured / simulated
        print(f"| {name} | {simulated:.2f} | {measured:.2f} | {ratio:.3f} |", flush=True)
    print("", *notes, sep="\n")
    options.write(figures, asked.out)


if __name__ == "__main__":
    main()
