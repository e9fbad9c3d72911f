"""Processes: a run on this machine, one process for each host, or spread over several machines."""

from __future__ import annotations

from pathlib import Path

from ..experiment import Experiment
from ..runs import Run
from .checkpoint import Checkpoint
from .coordinator import Coordinator
from .placement import Gathering
from .world import Progress


def run_processes(
    experiment: Experiment,
    directory: Path | None = None,
    progress: Progress | None = None,
    gathering: Gathering | None = None,
    *,
    checkpoint_every: float | None = None,
    resume: Checkpoint | None = None,
) -> Run:
    """Run an experiment as processes, and wait for it.

    With `directory` each node's journal is kept there, for `replay`. Links are the machines' own,
    and so are workers' speeds unless the experiment says `inject`. Faults happen: crash is SIGKILL.
    With `gathering` other machines take part. Every `checkpoint_every` seconds, and at the end, a
    checkpoint is written into the directory; `resume` is one from which the run goes on.

    Raises:
        OSError: the gathering's address is not this machine's, or is taken.
    """
    return Coordinator(
        experiment,
        directory,
        progress,
        gathering,
        checkpoint_every=checkpoint_every,
        resume=resume,
    ).run()
