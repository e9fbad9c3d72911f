"""Goals: how long each method takes to where all-reduce ends.

The goal is 99 % of the accuracy with which all-reduce ends, under the same seed. What is compared
is the time to it divided by all-reduce's own; a run that never gets there is infinitely slow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offbeat.compare import Comparison
from offbeat.runs import Run

REFERENCE = "AllReduceSGD"
GOAL = 0.99
"""Share of the reference's final accuracy."""


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


def lasted(found: Mapping[str, Sequence[Times]], name: str) -> float:
    """Seconds until the budget was spent, the median over the seeds."""
    return statistics.median(of_seed.lasted for of_seed in found[name])


def ratios(found: Mapping[str, Sequence[Times]], name: str) -> list[float]:
    """Of times to the goal, by seed."""
    return [
        own.seconds / reference.seconds
        for own, reference in zip(found[name], found[REFERENCE], strict=True)
    ]


def ratio(found: Mapping[str, Sequence[Times]], name: str) -> float:
    """The median of these."""
    return statistics.median(ratios(found, name))


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
        own = ratios(measured, entry.label)
        lines.append(
            f"| {entry.label} | {entry.rate:g}{' *' if entry.at_edge else ''} | "
            f"{statistics.mean(t.accuracy for t in real):.1%} | "
            f"{statistics.median(t.seconds for t in real):.2f} | "
            f"{statistics.median(t.seconds for t in virtual):.2f} | "
            f"{statistics.median(own):.2f} ({min(own):.2f} to {max(own):.2f}) | "
            f"{ratio(simulated, entry.label):.2f} |"
        )
    if any(entry.at_edge for entry in tuned.entries):
        lines += ["", "\\* at an end of the grid"]
    return "\n".join(lines)


def as_json(
    tuned: Comparison,
    simulated: Mapping[str, Sequence[Times]],
    measured: Mapping[str, Sequence[Times]],
) -> dict[str, Any]:
    """The same figures, and every run's; what is not finite is null."""
    return {
        entry.label: {
            "rate": entry.rate,
            "median ratio": _finite(ratio(measured, entry.label)),
            "median ratio, simulated": _finite(ratio(simulated, entry.label)),
            "runs": [_row(found) for found in measured[entry.label]],
            "runs, simulated": [_row(found) for found in simulated[entry.label]],
        }
        for entry in tuned.entries
    }


def _row(found: Times) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in vars(found).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
