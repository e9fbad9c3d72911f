"""Pauses: real runs whose processes are stopped for moments, as a busy machine does it to them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from ..cluster import Fault
from ..experiment import Experiment
from .observed import DEADLINE, ObservedRun, carried_out, wrong_with_samples
from .remains import descendants

LENGTHS = (0.001, 0.01, 0.05, 0.2)
"""Seconds of a pause; far fewer than after which anybody counts as gone."""
GAPS = (0.001, 0.01, 0.05)
"""Seconds between two."""
EXPECTED = (" joined at ", " took longer than injected")
"""In what a run may remark when it is paused."""


class Pauser(threading.Thread):
    """While it is entered, it stops (SIGSTOP) processes that this one has started since, one at a
    time, for moments.

    Which, when and for how long is drawn by `seed`; what a process is doing then is up to the
    machine.
    """

    def __init__(self, seed: str) -> None:
        super().__init__(name="pauser", daemon=True)
        self.count = 0
        """Pauses that there were."""
        self._rng = random.Random(seed)
        self._spared = frozenset(descendants())
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self._rng.choice(GAPS)):
            if victims := sorted(descendants().keys() - self._spared):
                self._pause(self._rng.choice(victims), self._rng.choice(LENGTHS))

    def _pause(self, victim: int, seconds: float) -> None:
        with contextlib.suppress(ProcessLookupError):  # It has just ended.
            os.kill(victim, signal.SIGSTOP)
            self.count += 1
            self._over.wait(seconds)
            os.kill(victim, signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self.join()


@dataclass(frozen=True, kw_only=True, eq=False)
class PausedRun(ObservedRun):
    """A run whose processes were paused: nothing of its result may show it.

    Args:
        pauses: how many there were.
        whole: the model (d,) of the run that nobody disturbed, where timing has no part in it.
    """

    pauses: int
    whole: Tensor | None = None

    @property
    def struck(self) -> bool:
        return self.pauses > 0

    def wrong(self) -> list[str]:
        found = self.wrong_with_result()
        if not found and self.whole is not None and not torch.equal(self.run.vector, self.whole):
            found.append("its model is not that of the undisturbed run")
        # A pause is no end, and whoever is paused is not given up.
        return found + [n for n in self.run.notes if not any(part in n for part in EXPECTED)]

    def wrong_with_budget(self) -> list[str]:
        experiment = self.run.experiment
        if experiment.cluster.faults:
            # Of a share of its own, who comes late does not do what it has missed.
            return wrong_with_samples(self.run, lost=experiment.quota is not None)
        return super().wrong_with_budget()


def run_paused(
    experiment: Experiment,
    directory: Path,
    seed: str,
    whole: Tensor | None = None,
    join: float | None = None,
    deadline: float = DEADLINE,
) -> PausedRun:
    """Run an experiment as processes, which are paused. In the main thread only.

    Args:
        seed: of the pauses.
        join: seconds after which the last worker joins; it is there from the start if None.

    Raises:
        TimeoutError: it hung for `deadline` seconds; it has been ended.
    """
    if join is not None:
        late = Fault(kind="join", rank=experiment.cluster.workers - 1, at=join)
        cluster = dataclasses.replace(experiment.cluster, faults=(late,))
        experiment = dataclasses.replace(experiment, cluster=cluster)
    with Pauser(seed) as pauser:
        run, seconds = carried_out(experiment, directory, deadline, f"pauses by {seed}")
    return PausedRun(
        run=run,
        seconds=seconds,
        journals=directory / "journals",
        pauses=pauser.count,
        whole=whole,
    )
