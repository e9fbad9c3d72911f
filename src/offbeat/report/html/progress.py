"""Accuracy, loss and consensus distance as the run goes on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...runs import Run
from ...trace import FAULT_KINDS
from .arrays import packed

AXES = ("seconds", "samples", "bytes")
CURVES = ("accuracy", "loss", "consensus")


def progress_data(run: Run) -> dict[str, Any]:
    """Columns of the metrics, and where on these curves each fault is."""
    columns = {
        name: np.array([getattr(row, name) for row in run.metrics], dtype=float)
        for name in (*AXES, *CURVES)
    }
    # A diverged model's loss may be infinite; no axis has room for that.
    columns = {n: np.where(np.isfinite(values), values, np.nan) for n, values in columns.items()}
    faults = fault_list(run)
    at = np.array([fault["at"] for fault in faults])
    marks = {
        name: packed(np.interp(at, columns["seconds"], values) if len(values) else at * np.nan)
        for name, values in columns.items()
    }
    return {
        "columns": {name: packed(values) for name, values in columns.items()},
        "faults": marks | {"text": [fault["text"] for fault in faults]},
    }


def fault_list(run: Run) -> list[dict[str, Any]]:
    """Each fault that happened: node, seconds, kind, and a line of text."""
    table = run.trace.faults
    listed: list[dict[str, Any]] = []
    for node, at_ns, kind, factor in table[np.argsort(table["at_ns"], kind="stable")].tolist():
        word = FAULT_KINDS[kind]
        where = node_names(run)[node]
        if word == "slow":
            word = f"{factor:g} times slower" if factor != 1 else "at its own speed again"
        what = f"{where}: {word}"
        listed.append(
            {
                "node": node,
                "at": at_ns / 1e9,
                "kind": FAULT_KINDS[kind],
                "text": f"{what} at {at_ns / 1e9:.3f} s",
            }
        )
    return listed


def node_names(run: Run) -> list[str]:
    """ "worker 0", ..., and the servers after the workers."""
    workers, servers = run.experiment.cluster.workers, run.experiment.method.server_count
    names = [f"worker {k}" for k in range(workers)]
    if servers == 1:
        return [*names, "server"]
    return [*names, *(f"server {k}" for k in range(servers))]
