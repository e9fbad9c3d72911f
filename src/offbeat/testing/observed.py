"""Observed runs: real runs to which something was done, and what has to hold of them."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from ..experiment import Experiment
from ..runs import Run
from ..runtime.causes import Kind
from ..runtime.errors import RunError
from ..runtime.journal import read_journal
from ..runtime.processes import run_processes
from ..runtime.replay import replay_run

DEADLINE = 120.0
"""Seconds after which a run counts as hung."""
UNHEARD = 128
"""Gradients that a killed worker may have computed since its last report, of a quarter second."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservedRun(ABC):
    """A real run to which something was done.

    Args:
        seconds: from the roles' start to the end of all processes.
        journals: of the run.
    """

    run: Run
    seconds: float
    journals: Path

    @property
    @abstractmethod
    def struck(self) -> bool:
        """Whether what was to be done to it came about before its end."""

    @abstractmethod
    def wrong(self) -> list[str]:
        """What does not hold of it and should, a line each."""

    @property
    def lost(self) -> int | None:
        """The node that did not come to the run's end; None if all did."""
        return None

    def wrong_with_result(self) -> list[str]:
        """What does not hold, if it had to go on to the end."""
        run = self.run
        if run.error is not None:
            return [f"error: {run.error}"]
        found: list[str] = []
        if run.stop != "samples":
            found.append(f"stopped for {run.stop}, not because the budget was spent")
        if not bool(run.vector.isfinite().all()):
            found.append("the model is not finite")
        first, last = run.metrics[0].loss, run.metrics[-1].loss
        if not (math.isfinite(last) and last < first):
            found.append(f"the loss went from {first:.4g} to {last:.4g}")
        found += self.wrong_with_budget()
        if run.experiment.method.shares_parameters:
            # No journal says who wrote when.
            return found
        try:
            replayed = replay_run(run.experiment, self.journals)
        except RunError as error:
            return [*found, f"it cannot be replayed: {error}"]
        if not torch.equal(replayed.vector, run.vector):
            found.append("its replay gives another model")
        return found

    def wrong_with_budget(self) -> list[str]:
        """Every gradient that the budget allows was computed, but for a lost node's last."""
        experiment = self.run.experiment
        if experiment.method.shares_parameters:
            return wrong_with_samples(self.run, lost=self.lost is not None)
        computed = [
            sum(entry.cause.kind is Kind.GRADIENT for entry in read_journal(path))
            for path in (
                self.journals / f"node-{rank}.journal" for rank in range(experiment.cluster.workers)
            )
        ]
        if (quota := experiment.quota) is not None:
            return [
                f"node {rank} computed {count} gradients of {quota}"
                for rank, count in enumerate(computed)
                if count != quota and rank != self.lost
            ]
        total, budget = sum(computed), experiment.gradients
        if budget - (self.lost is not None) <= total <= budget:
            return []
        return [f"{total} gradients were computed of {budget:g}"]


def wrong_with_samples(run: Run, *, lost: bool) -> list[str]:
    """Whether the samples are those that the budget allows, but for what a `lost` worker owes."""
    experiment = run.experiment
    batch, counted = experiment.problem.batch_size, [row.samples for row in run.metrics]
    found: list[str] = []
    if counted != sorted(counted):
        found.append("the number of samples went backwards")
    # What it computed since its last report, or all of the share that is its own.
    owed = (experiment.quota or UNHEARD) if lost else 0
    if not (experiment.gradients - owed) * batch <= counted[-1] <= experiment.gradients * batch:
        found.append(f"{counted[-1]} samples were computed of {experiment.gradients * batch:g}")
    return found


def carried_out(
    experiment: Experiment,
    directory: Path,
    deadline: float,
    what: str,
    checkpoint_every: float | None = None,
) -> tuple[Run, float]:
    """Run an experiment as processes. In the main thread only.

    Args:
        what: is being done to it.

    Returns:
        The run, and the seconds from the roles' start to the end of all processes.

    Raises:
        TimeoutError: it hung for `deadline` seconds; it has been ended.
    """
    began: list[float] = [time.monotonic()]

    def at_row(_: object) -> None:
        if len(began) == 1:  # The first row of metrics is that of the start.
            began.append(time.monotonic())

    with _alarm(deadline, f"{what}: no end after {deadline:g} s"):
        run = run_processes(experiment, directory, at_row, checkpoint_every=checkpoint_every)
    return run, time.monotonic() - began[-1]


@contextlib.contextmanager
def _alarm(seconds: float, text: str) -> Generator[None]:
    def ring(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(text)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
