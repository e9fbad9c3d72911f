"""Recoveries: real runs in which whoever was killed comes back, and what has to hold of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cluster import Fault
from ..experiment import Experiment
from .chaos import Saboteur
from .kills import KilledRun, run_killed
from .observed import DEADLINE, wrong_with_samples

CHECKPOINTS = 0.1
"""Seconds between those of a run that is to recover."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecoveredRun(KilledRun):
    """A run with checkpoints: it has to go on to the end whichever process was killed.

    Args:
        whole: the model (d,) of the run that nobody disturbed, where timing has no part in it.
    """

    whole: Tensor | None = None

    @property
    def needed(self) -> bool:
        """Whether the run cannot do without the node that was to be killed."""
        server = self.where.rank >= self.run.experiment.cluster.workers
        return server or not self.run.experiment.method.survives_loss

    def wrong(self) -> list[str]:
        found = self.wrong_with_result()
        whole = self.whole if self.needed or not self.struck else None
        if not found and whole is not None and not torch.equal(self.run.vector, whole):
            found.append("its model is not that of the uninterrupted run")
        return found

    def wrong_with_budget(self) -> list[str]:
        if self.struck and self.needed:
            # The journals begin where all went back to.
            return wrong_with_samples(self.run, lost=False)
        return super().wrong_with_budget() + wrong_with_samples(self.run, lost=self.struck)


@dataclass(frozen=True, kw_only=True, eq=False)
class RejoinedRun(KilledRun):
    """A run in which the worker that was killed joins again, by the cluster's faults."""

    @property
    def joined(self) -> bool:
        return f"node {self.where.rank} (worker) joined at" in " ".join(self.run.notes)

    def wrong(self) -> list[str]:
        found = self.wrong_with_result()
        if not self.joined:
            return [*found, "nobody joined"]
        computed = self.run.trace.gradients["node"]
        if not (computed == self.where.rank).any():
            found.append("who joined again computed nothing")
        return found

    def wrong_with_budget(self) -> list[str]:
        return wrong_with_samples(self.run, lost=self.struck)


def run_recovering(
    experiment: Experiment,
    where: Saboteur,
    directory: Path,
    whole: Tensor | None,
    deadline: float = DEADLINE,
) -> RecoveredRun:
    """Run the experiment with checkpoints as processes, one of which kills itself there.

    Raises:
        TimeoutError: it hung for `deadline` seconds; it has been ended.
    """
    killed = run_killed(experiment, where, directory, deadline, checkpoint_every=CHECKPOINTS)
    return RecoveredRun(**_fields(killed), whole=whole)


def run_rejoining(
    experiment: Experiment,
    where: Saboteur,
    directory: Path,
    at: float,
    deadline: float = DEADLINE,
) -> RejoinedRun:
    """Run the experiment; the worker that kills itself there joins again at `at` seconds.

    If it has not come to that await shortly before, it is killed all the same.

    Raises:
        TimeoutError: it hung for `deadline` seconds; it has been ended.
    """
    crash = Fault(kind="crash", rank=where.rank, at=at - 0.2)
    join = Fault(kind="join", rank=where.rank, at=at)
    cluster = dataclasses.replace(experiment.cluster, faults=(crash, join))
    planned = dataclasses.replace(experiment, cluster=cluster)
    return RejoinedRun(**_fields(run_killed(planned, where, directory, deadline)))


def _fields(killed: KilledRun) -> dict[str, Any]:
    return {field.name: getattr(killed, field.name) for field in dataclasses.fields(killed)}
