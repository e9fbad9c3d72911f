"""How stale gradients were when they were applied, by the worker that had computed them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runs import Run
from ...trace import DELIVERED
from .arrays import packed
from .progress import node_names

BINS = 60
"""At most; a staleness beyond shares its bin with its neighbours."""


def staleness_data(run: Run) -> dict[str, Any] | None:
    """Counts by bin of staleness, for all and for each worker; None if nothing was applied."""
    steps = run.trace.steps
    if not len(steps):
        return None
    owners = gradient_owners(run)
    top = int(steps["staleness"].max())
    width = max(1, -(-(top + 1) // BINS))
    bins = top // width + 1
    shown = np.unique(owners)
    counts = np.zeros((len(shown), bins), dtype=np.int64)
    np.add.at(counts, (np.searchsorted(shown, owners), steps["staleness"] // width), 1)
    names = node_names(run)
    return {
        "width": width,
        "max": top,
        "from": packed(np.arange(bins) * width, "i4"),
        "counts": packed(counts, "i4"),
        "total": packed(counts.sum(axis=0), "i4"),
        "nodes": [names[node] for node in shown.tolist()],
        "means": [round(float(steps["staleness"][owners == n].mean()), 3) for n in shown],
        "averaging": run.experiment.method.family == "decentralized",
        "by_worker": bool((shown < run.experiment.cluster.workers).all()),
    }


def gradient_owners(run: Run) -> NDArray[np.int64]:
    """The worker that computed the gradient of each step; else the node that applied it.

    A server's trace does not name the worker. Where a server makes one step for each message of
    some kind, its k-th step is of its k-th such message; the steps of other servers stay theirs.
    """
    steps, messages = run.trace.steps, run.trace.messages
    owners = steps["node"].astype(np.int64)
    first = run.experiment.cluster.workers
    for server in range(first, first + run.experiment.method.server_count):
        mine = np.flatnonzero(steps["node"] == server)
        mine = mine[np.argsort(steps["version"][mine], kind="stable")]
        pushed = messages[(messages["to"] == server) & (messages["outcome"] == DELIVERED)]
        pushed = pushed[np.argsort(pushed["end_ns"], kind="stable")]
        for kind in np.unique(pushed["kind"]):
            same = pushed[pushed["kind"] == kind]
            ends = same["end_ns"]
            # Two that arrived at one instant may have been taken in either order.
            apart = len(ends) < 2 or bool((np.diff(ends) > 0).all())
            if len(same) == len(mine) and apart and bool((steps["at_ns"][mine] >= ends).all()):
                owners[mine] = same["source"]
                break
    return owners
