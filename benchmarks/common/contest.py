"""A contest of methods: each at the learning rate that suits it best, then all of them for real.

Rates are chosen by the same rule for all, in the simulator, of the same cluster: of one grid that
with the best mean accuracy on the validation part when the budget of samples is spent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from offbeat import Experiment
from offbeat.compare import HALF_DECADES, Comparison, compare
from offbeat.method import Method
from offbeat.runs import Run

QUICK_RATES = (0.1, 0.3)


def tune(
    methods: Mapping[str, Method], experiment: Experiment, *, seeds: Sequence[int], quick: bool
) -> Comparison:
    """Every method's rate, and its simulated runs on the test part; it says what it has chosen.

    Raises:
        SystemExit: a method fails in the simulator.
    """
    tuned = compare(
        methods,
        experiment,
        rates=QUICK_RATES if quick else HALF_DECADES,
        seeds=seeds,
        jobs=1 if quick else os.cpu_count() or 1,
    )
    for entry in tuned.entries:
        if entry.error is not None:
            raise SystemExit(f"{entry.label}: {entry.error}")
        print(f"{entry.label}: rate {entry.rate:g}", flush=True)
    return tuned


def in_turns(tuned: Comparison, measure: Callable[[Run], Run]) -> dict[str, list[Run]]:
    """The measured run for each simulated one, by method and in the order of the seeds."""
    runs: dict[str, list[Run]] = {entry.label: [] for entry in tuned.entries}
    for index, seed in enumerate(tuned.seeds):
        # Methods take turns, so that what slows the machine down slows all alike.
        for entry in tuned.entries:
            runs[entry.label].append(measure(entry.runs[index]))
        print(f"seed {seed} done", flush=True)
    return runs


def print_notes(name: str, runs: Sequence[Run]) -> None:
    """The first of what a method's runs have to say."""
    notes = [note for run in runs for note in run.notes]
    if notes:
        print(f"note: {name}: {notes[0]}; {len(notes)} such notes of {len(runs)} runs")
