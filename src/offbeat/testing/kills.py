"""Kills: real runs in which a process dies at a chosen await, and what has to hold of them then."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from ..experiment import Experiment
from .chaos import VARIABLE, Saboteur, count_awaits
from .observed import DEADLINE, ObservedRun, carried_out

NOTICED = 10.0
"""Seconds in which a run has to end when it cannot go on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KilledRun(ObservedRun):
    """A real run in which a process was to kill itself.

    Args:
        where: which await it was.
    """

    where: Saboteur

    @property
    def struck(self) -> bool:
        """Whether the run came to that await at all: real timing may let others be faster."""
        return any(f"node {self.where.rank} " in note and "SIGKILL" in note
                   for note in self.run.notes)  # fmt: skip

    @property
    def lost(self) -> int | None:
        return self.where.rank if self.struck else None

    def wrong(self) -> list[str]:
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
    with _environment(str(where)):
        run, seconds = carried_out(
            experiment, directory, deadline, str(where), checkpoint_every=checkpoint_every
        )
    return KilledRun(where=where, run=run, seconds=seconds, journals=directory / "journals")


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
