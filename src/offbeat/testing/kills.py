"""Kills: real runs in which a process dies at a chosen await, and what has to hold of them then."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
import signal
import time
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
from .chaos import VARIABLE, Saboteur, count_awaits

DEADLINE = 120.0
"""Seconds after which a run counts as hung."""
NOTICED = 10.0
"""Seconds in which a run has to end when it cannot go on."""

UNHEARD = 128
"""Gradients that a killed worker may have computed since its last report, of a quarter second."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KilledRun:
    """A real run in which a process was to kill itself.

    Args:
        where: which await it was.
        seconds: from the roles' start to the end of all processes.
        journals: of the run.
    """

    where: Saboteur
    run: Run
    seconds: float
    journals: Path

    @property
    def struck(self) -> bool:
        """Whether the run came to that await at all: real timing may let others be faster."""
        return any(f"node {self.where.rank} " in note and "SIGKILL" in note
                   for note in self.run.notes)  # fmt: skip

    def wrong(self) -> list[str]:
        """What does not hold of it and should, a line each."""
        experiment = self.run.experiment
        server = self.where.rank >= experiment.cluster.workers
        # A worker that dies near the end may be needed by nobody any more.
        ended = self.run.error is not None and not experiment.method.survives_loss
        if self.struck and (server or ended):
            return self._wrong_with_end()
        return self.wrong_with_result()

    def _wrong_with_end(self) -> list[str]:
        """It could not go on."""
        run, rank = self.run, self.where.rank
        found: list[str] = []
        if run.error is None:
            found.append("no error, although it could not go on")
        elif f"node {rank} " not in run.error and f"server {rank} is gone" not in run.error:
            found.append(f"the error does not name node {rank}: {run.error}")
        elif "\n" in run.error:
            found.append(f"the error has several lines: {run.error}")
        if self.seconds > NOTICED:
            found.append(f"took {self.seconds:.1f} s to end")
        if not run.metrics:
            found.append("what was recorded is lost")
        return found

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
        """Every gradient that the budget allows was computed, but for the dead node's last."""
        experiment = self.run.experiment
        if experiment.method.shares_parameters:
            return wrong_with_samples(self.run, lost=self.struck)
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
                if count != quota and not (self.struck and rank == self.where.rank)
            ]
        total, budget = sum(computed), experiment.gradients
        if budget - self.struck <= total <= budget:
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


def draw_kills(experiment: Experiment, ranks: range, count: int, seed: int) -> list[Saboteur]:
    """Awaits of those nodes, at random: of each kind that the method has in turn.

    The number of each is drawn from as many as there are in the simulated run. The same
    arguments give the same kills, and the first are those of a smaller `count`.
    """
    planned = dataclasses.replace(
        experiment,
        # Collectives are to be awaited part by part, as they are in a real run.
        cluster=dataclasses.replace(experiment.cluster, collectives="messages"),
        evaluator="serial",
    )
    awaits = count_awaits(planned)
    kinds = sorted({kind for rank in ranks for kind in awaits[rank]})
    kills: list[Saboteur] = []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        rng = random.Random(f"{seed} {type(experiment.method).__name__} {index}")
        rank = rng.choice([rank for rank in ranks if awaits[rank][kind]])
        number = rng.randint(1, awaits[rank][kind])
        kills.append(Saboteur(rank=rank, kind=kind, number=number))
    return kills


def run_killed(
    experiment: Experiment,
    where: Saboteur,
    directory: Path,
    deadline: float = DEADLINE,
    checkpoint_every: float | None = None,
) -> KilledRun:
    """Run the experiment as processes, one of which kills itself there. In the main thread only.

    Args:
        checkpoint_every: seconds between checkpoints; none are written if not given.

    Raises:
        TimeoutError: it hung for `deadline` seconds; it has been ended.
    """
    began = time.monotonic()

    def at_start(_: object) -> None:
        nonlocal began
        if not measured:
            began = time.monotonic()
        measured.append(None)

    measured: list[None] = []
    with _environment(str(where)), _alarm(deadline, f"{where}: no end after {deadline:g} s"):
        run = run_processes(experiment, directory, at_start, checkpoint_every=checkpoint_every)
    return KilledRun(
        where=where,
        run=run,
        seconds=time.monotonic() - began,
        journals=directory / "journals",
    )


@contextlib.contextmanager
def _environment(value: str) -> Generator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


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
