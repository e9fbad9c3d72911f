"""Coordinating: how the machine that coordinates a run carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..experiment import Experiment
from ..runs import Run
from ..runtime.checkpoint import Checkpoint
from ..runtime.placement import Gathering
from ..runtime.processes import run_processes
from ..runtime.world import Progress

Execute = Callable[[Experiment, Progress | None, Path | None], Run]


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What the coordinator does about checkpoints: seconds between them, and where it goes on."""

    every: float | None
    resume: Checkpoint | None

    def coordinating(self, gathering: Gathering | None) -> Execute:
        def execute(experiment: Experiment, progress: Progress | None, where: Path | None) -> Run:
            return run_processes(
                experiment,
                where,
                progress,
                gathering,
                checkpoint_every=self.every,
                resume=self.resume,
            )

        return execute
