"""The table: what each run came to."""

from __future__ import annotations

import math
from collections.abc import Callable

from ...compare.methods import learning_rate
from ...runs import Metrics, Run

MODES = {
    "simulated": "simulated, virtual time",
    "processes": "real processes, wall time",
    "loop": "the user's loop, wall time",
    "replay": "replay of a real run, wall time",
}
STOPS = {
    "samples": "samples",
    "seconds": "seconds",
    "accuracy": "accuracy reached",
    "finished": "nothing left",
    "interrupted": "interrupted",
    "error": "error",
    "journal": "record ended",
}
NONE = "\u2013"

COLUMNS = (
    "workers",
    "lr",
    "accuracy",
    "loss",
    "seconds",
    "samples",
    "steps",
    "sent",
    "staleness mean",
    "staleness max",
    "idle",
    "consensus",
    "stopped",
)
TITLES = {
    "lr": "base learning rate of the workers' optimizer",
    "accuracy": "at the last evaluation",
    "loss": "at the last evaluation, mean over the evaluated part",
    "seconds": "until the last gradient was computed",
    "samples": "in gradients computed, by all workers",
    "steps": "gradients applied, by all nodes",
    "sent": "bytes of all messages",
    "staleness mean": "optimizer steps between a gradient's snapshot and its use",
    "staleness max": "optimizer steps between a gradient's snapshot and its use",
    "idle": "share of the workers' time not spent computing",
    "consensus": "root mean square distance of the workers' parameters to their mean",
    "stopped": "which end of the budget came first, or what else ended the run",
}


def summary_cells(run: Run) -> list[str]:
    """The row of a run, a text for each of COLUMNS."""
    servers = run.experiment.method.server_count
    workers = str(run.experiment.cluster.workers)
    if servers:
        workers += f" + {servers} server{'s' * (servers != 1)}"
    last = run.metrics[-1] if run.metrics else None

    def of_last(value: Callable[[Metrics], float], text: Callable[[float], str]) -> str:
        return NONE if last is None else text(value(last))

    stale = run.staleness
    # A replay follows the order of events, not their times.
    timed = run.seconds > 0 and run.mode != "replay" and len(run.trace.gradients) > 0
    return [
        workers,
        _rate(run),
        of_last(lambda row: row.accuracy, percent),
        of_last(
            lambda row: row.loss,
            lambda loss: f"{loss:.4g}" if math.isfinite(loss) else "not finite",
        ),
        f"{run.seconds:,.3f}",
        of_last(lambda row: row.samples, lambda count: f"{count:,}"),
        of_last(lambda row: row.steps, lambda count: f"{count:,}"),
        of_last(lambda row: row.bytes, byte_text),
        f"{stale.mean():.2f}" if len(stale) else NONE,
        f"{stale.max()}" if len(stale) else NONE,
        f"{1 - run.busy.mean():.0%}" if timed else NONE,
        of_last(lambda row: row.consensus, lambda x: f"{x:.3g}" if not x < 1e-5 else "0"),
        STOPS.get(run.stop, run.stop),
    ]


def _rate(run: Run) -> str:
    try:
        return f"{learning_rate(run.experiment):g}"
    except (KeyError, TypeError, ValueError):
        return NONE  # A user's own optimizer may set its rate inside.


def percent(share: float) -> str:
    return NONE if math.isnan(share) else f"{share:.2%}"


def byte_text(count: float) -> str:
    """36.9 MB"""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} B"


def second_word(runs: list[Run]) -> str:
    """What a second on a common axis of these runs is."""
    kinds = {"virtual" if run.mode == "simulated" else "wall" for run in runs}
    return f"{kinds.pop()} seconds" if len(kinds) == 1 else "seconds, virtual or wall"
