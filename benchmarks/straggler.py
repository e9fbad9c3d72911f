"""One worker is four times slower: when do asynchronous methods get to where all-reduce ends?

    python benchmarks/straggler.py
    python benchmarks/straggler.py --quick

Four worker processes on the handwritten digits. Each gradient sleeps out what the cluster says it
takes, so that two cores carry them. Every method's learning rate is chosen by the same rule, in the
simulator, of the same cluster: of one grid that with the best mean accuracy on the validation part
when the budget of samples is spent. Then each runs for real, judged on the test part.

The goal is 99 % of the accuracy with which all-reduce ends, under the same seed. A figure is the
time to it divided by all-reduce's own; a run that never gets there counts as infinitely slow.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common.options import out_file

import offbeat
from offbeat.cluster import Lognormal
from offbeat.compare import HALF_DECADES, Comparison, compare
from offbeat.method import Method
from offbeat.methods import ADPSGD, AllReduceSGD, AsyncSGD
from offbeat.runs import Run

METHODS: dict[str, Method] = {
    "AllReduceSGD": AllReduceSGD(),
    "AsyncSGD": AsyncSGD(),
    "ADPSGD": ADPSGD(),
}
REFERENCE = "AllReduceSGD"
GOAL = 0.99
"""Share of the reference's final accuracy."""
EXPECTED = 0.45
"""The median ratio of times that is hoped for, at most."""
CLUSTER = offbeat.Cluster(workers=4, compute=Lognormal(seconds=0.02, sigma=0.2), slow={0: 4.0})


@dataclass(frozen=True, kw_only=True)
class Times:
    """Of one method under one seed.

    Args:
        accuracy: on the test part, at the end.
        goal: what is to be reached.
        seconds, samples: to it; infinite if it was not reached (null in JSON).
        lasted: seconds until the budget was spent.
    """

    accuracy: float
    goal: float
    seconds: float
    samples: float
    lasted: float


def experiment(samples: int) -> offbeat.Experiment:
    return offbeat.Experiment(
        method=METHODS[REFERENCE],
        problem=offbeat.problems.Digits(),
        cluster=CLUSTER,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        budget=offbeat.Budget(samples=samples),
        evaluate_every=256,
    )


def for_real(chosen: offbeat.Experiment, method: Method, rate: float, seed: int) -> Run:
    """The same experiment as processes.

    Raises:
        RuntimeError: it ended badly.
    """
    run = offbeat.run(
        method,
        chosen.problem,
        cluster=chosen.cluster,
        optimizer=functools.partial(torch.optim.SGD, lr=rate),
        budget=chosen.budget,
        seed=seed,
        evaluate_every=chosen.evaluate_every,
        inject=True,
    )
    if run.error is not None:
        raise RuntimeError(f"{type(method).__name__} at rate {rate:g}: {run.error}")
    return run


def times(runs: Mapping[str, Sequence[Run]]) -> dict[str, list[Times]]:
    """Of every method under every seed, the seeds in the same order for all."""
    goals = [GOAL * run.metrics[-1].accuracy for run in runs[REFERENCE]]
    return {
        name: [_to(goal, run) for run, goal in zip(of_method, goals, strict=True)]
        for name, of_method in runs.items()
    }


def _to(goal: float, run: Run) -> Times:
    reached = run.reached(goal)
    return Times(
        accuracy=run.metrics[-1].accuracy,
        goal=goal,
        seconds=reached.seconds if reached else math.inf,
        samples=reached.samples if reached else math.inf,
        lasted=run.seconds,
    )


def ratios(found: Mapping[str, Sequence[Times]], name: str) -> list[float]:
    """Of times to the goal, by seed."""
    return [
        own.seconds / reference.seconds
        for own, reference in zip(found[name], found[REFERENCE], strict=True)
    ]


def table(
    tuned: Comparison,
    simulated: Mapping[str, Sequence[Times]],
    measured: Mapping[str, Sequence[Times]],
) -> str:
    """Markdown."""
    lines = [
        "| method | rate | test accuracy | seconds to the goal | simulated | ratio, median "
        "(least to greatest) | simulated |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in tuned.entries:
        real, virtual = measured[entry.label], simulated[entry.label]
        own, predicted = ratios(measured, entry.label), ratios(simulated, entry.label)
        lines.append(
            f"| {entry.label} | {entry.rate:g}{' *' if entry.at_edge else ''} | "
            f"{statistics.mean(t.accuracy for t in real):.1%} | "
            f"{statistics.median(t.seconds for t in real):.2f} | "
            f"{statistics.median(t.seconds for t in virtual):.2f} | "
            f"{statistics.median(own):.2f} ({min(own):.2f} to {max(own):.2f}) | "
            f"{statistics.median(predicted):.2f} |"
        )
    if any(entry.at_edge for entry in tuned.entries):
        lines += ["", "\\* at an end of the grid"]
    return "\n".join(lines)


def record(
    tuned: Comparison,
    simulated: Mapping[str, Sequence[Times]],
    measured: Mapping[str, Sequence[Times]],
) -> dict[str, Any]:
    """The same figures, and every run's, as JSON takes them."""
    return {
        entry.label: {
            "rate": entry.rate,
            "median ratio": _finite(statistics.median(ratios(measured, entry.label))),
            "median ratio, simulated": _finite(statistics.median(ratios(simulated, entry.label))),
            "runs": [_as_json(found) for found in measured[entry.label]],
            "runs, simulated": [_as_json(found) for found in simulated[entry.label]],
        }
        for entry in tuned.entries
    }


def _as_json(found: Times) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in vars(found).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, few samples, two rates")
    parser.add_argument("--out", type=out_file, help="a file for all figures, as JSON")
    asked = parser.parse_args(arguments)
    seeds = range(1) if asked.quick else range(5)
    rates = (0.1, 0.3) if asked.quick else HALF_DECADES
    chosen = experiment(samples=1_280 if asked.quick else 30_000)
    cores = os.cpu_count() or 1
    tuned = compare(METHODS, chosen, rates=rates, seeds=seeds, jobs=1 if asked.quick else cores)
    for entry in tuned.entries:
        if entry.error is not None:
            raise SystemExit(f"{entry.label}: {entry.error}")
        print(f"{entry.label}: rate {entry.rate:g}", flush=True)
    runs: dict[str, list[Run]] = {name: [] for name in METHODS}
    for seed in seeds:
        # Methods take turns, so that what slows the machine down slows all alike.
        for entry in tuned.entries:
            assert entry.rate is not None
            runs[entry.label].append(for_real(chosen, entry.method, entry.rate, seed))
        print(f"seed {seed} done", flush=True)
    simulated = times({entry.label: entry.runs for entry in tuned.entries})
    measured = times(runs)
    print(f"\n{chosen.cluster.workers} workers as processes on {cores} cores, {CLUSTER.compute},")
    print(f"worker 0 four times slower; {chosen.budget.samples:,} samples, {len(seeds)} seeds\n")
    print(table(tuned, simulated, measured))
    for name in METHODS:
        real, virtual = ([t.lasted for t in found[name]] for found in (measured, simulated))
        longer = statistics.median(real) / statistics.median(virtual)
        print(f"{name}: whole runs lasted {longer:.2f} times as long as simulated")
        notes = [note for run in runs[name] for note in run.notes]
        if notes:
            print(f"note: {name}: {notes[0]}; {len(notes)} such notes of {len(runs[name])} runs")
        if name != REFERENCE:
            ratio = statistics.median(ratios(measured, name))
            verdict = "met" if ratio <= EXPECTED else "not met"
            print(f"{name}: {ratio:.2f} of all-reduce's time (expected {EXPECTED}: {verdict})")
    if asked.out is not None:
        figures = record(tuned, simulated, measured)
        asked.out.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
