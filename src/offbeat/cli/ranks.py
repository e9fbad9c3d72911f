"""Ranks: a run whose processes torchrun, or a cluster's own launcher, has started as ranks."""

from __future__ import annotations

from ..experiment import Experiment
from ..runtime import torchrun
from ..runtime.agent import Joining
from ..runtime.errors import RunError
from ..runtime.placement import Gathering
from ..runtime.world import World
from .coordinating import Execute, Keeping
from .errors import UsageError, one_line
from .joining import Elsewhere, take_part
from .output import write_line


def ranked(patience: float, experiment: Experiment, keeping: Keeping) -> Execute:
    """Rank 0 coordinates; every rank starts the process of its own number."""
    late = [r for r in range(experiment.cluster.workers) if experiment.cluster.begins_absent(r)]
    if late:
        raise UsageError(
            f"worker {late[0]} begins absent by cluster.faults, and ranks are all there from the "
            "start: leave its first join out, or start the run without ranks"
        )
    needed = World(experiment).host_count()
    try:
        rank = torchrun.meet(patience)
        if rank.size != needed:
            workers, servers = experiment.cluster.workers, experiment.method.server_count
            raise UsageError(
                f"{workers} workers and {servers} servers of {type(experiment.method).__name__} "
                f"take {needed} processes, and there are {rank.size} ranks: start {needed} ranks, "
                f"or change --workers"
            )
        if rank.rank > 0:
            joining = Joining(
                coordinator=rank.coordinator(),
                slots=1,
                secret=rank.secret,
                hosts=(rank.rank,),
                patience=patience,
            )
            take_part(experiment, joining)
        return keeping.coordinating(
            Gathering(
                listen=rank.listen,
                slots=1,
                secret=rank.secret,
                patience=patience,
                on_listening=rank.publish,
                # Who starts the ranks starts all of them, and counts one that is refused as failed.
                complete=True,
            )
        )
    except RunError as error:
        write_line(one_line(error))
        raise Elsewhere(1) from None
