"""The network's load: bytes per second, in all and in and out of each node."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...runs import Run
from .arrays import binned, binned_by, packed
from .progress import node_names

BINS = 120


def network_data(run: Run) -> dict[str, Any] | None:
    """Bytes per second by bin of time; None if no message left its host.

    A message's bytes are spread evenly over its transfer. Nothing is sent within a host.
    """
    messages = run.trace.messages
    hosts = np.array(_hosts(run))
    messages = messages[hosts[messages["source"]] != hosts[messages["to"]]]
    if not len(messages):
        return None
    starts, ends = messages["start_ns"] / 1e9, messages["end_ns"] / 1e9
    edges = np.linspace(0.0, max(run.seconds, float(ends.max())), BINS + 1)
    width = edges[1]
    nodes = range(len(hosts))
    columns = {"out": messages["source"], "in": messages["to"]}
    rates = {
        way: binned_by(nodes, column, starts, ends, messages["bytes"], edges) / width
        for way, column in columns.items()
    }
    return {
        "nodes": node_names(run),
        "seconds": packed((edges[:-1] + edges[1:]) / 2),
        "width": float(width),
        "total": packed(binned(starts, ends, messages["bytes"], edges) / width),
        "out": packed(rates["out"], "f4"),
        "in": packed(rates["in"], "f4"),
    }


def _hosts(run: Run) -> list[int]:
    """The host of each node: a colocated server is on that of the worker with its number."""
    method, workers = run.experiment.method, run.experiment.cluster.workers
    first = 0 if method.colocate else workers
    return [*range(workers), *(first + k for k in range(method.server_count))]
