"""Refusals: what a real run cannot do, said before anything is started."""

from __future__ import annotations

from pathlib import Path

from ..experiment import Experiment
from .checkpoint import Checkpoint
from .spawning import require_sendable


def require_possible(
    experiment: Experiment,
    directory: Path | None,
    checkpoint_every: float | None,
    resume: Checkpoint | None,
    *,
    alone: bool,
) -> None:
    """Raise ValueError for what real runs cannot do, `alone` on this machine or not."""
    if experiment.method.shares_parameters and not alone:
        raise ValueError(
            f"the workers of {type(experiment.method).__name__} share memory, and so all run on "
            "one machine: leave --join and --nodes out, and start no ranks"
        )
    late = [fault.rank for fault in experiment.cluster.faults if fault.kind == "join"]
    if experiment.method.shares_parameters and late:
        raise ValueError(
            f"node {late[0]} joins late, which in a run of {type(experiment.method).__name__} only "
            "`simulate` can do; drop the fault"
        )
    if experiment.cluster.outages:
        raise ValueError(
            "cluster.outages part nodes of a simulated network; a real run cannot bring them "
            "about so far: drop them, or use `simulate`"
        )
    require_sendable(experiment)
    if checkpoint_every is not None and directory is None:
        raise ValueError("checkpoints need a directory to be written to")
    if checkpoint_every is not None and experiment.method.shares_parameters:
        raise ValueError(
            f"{type(experiment.method).__name__} cannot be checkpointed: its workers change "
            "parameters that they share at any time; leave --checkpoint out"
        )
    if resume is not None:
        resume.require_same(experiment)
