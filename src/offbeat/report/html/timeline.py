"""What each node did when: every event of a window, and shares of the time for the whole run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runs import Run
from ...trace import LOST
from .arrays import binned_by, packed
from .progress import fault_list, node_names

BINS = 240
"""Of the whole run, for which shares are given however many events it has."""
EVENTS = 400_000
"""Gradients, waits and messages of all runs of a report together that are kept one by one."""
GRADIENTS = (80, 5, 36)
"""How many computations the first view is to hold, and at least and at most of each worker."""
DRAWN = 1200
"""How many computations and waits the first view draws at most."""
SPAN = np.dtype([("node", "i4"), ("start_ns", "i8"), ("end_ns", "i8")])


def timeline_data(run: Run, most: int = EVENTS) -> dict[str, Any]:
    """Shares of computing and waiting by bin, and up to `most` events one by one.

    The events kept are those of one stretch of the run: from its beginning, or if it is real
    from its middle, when every process has long been warm.
    """
    trace = run.trace
    nodes = range(len(node_names(run)))
    tables = {
        # A server's own work on a message is computing too.
        "gradients": np.concatenate([_spans(trace.gradients), _spans(trace.work)]),
        "waits": _spans(trace.waits),
        "messages": trace.messages,
    }
    # Servers go on after the last gradient, and a wait may outlast it.
    ends = [table["end_ns"].max() for table in tables.values() if len(table)]
    total = max([run.seconds, *(int(end) / 1e9 for end in ends)])
    edges = np.linspace(0.0, max(total, 1e-9), BINS + 1)
    shares = {
        name: binned_by(
            nodes,
            tables[name]["node"],
            tables[name]["start_ns"] / 1e9,
            tables[name]["end_ns"] / 1e9,
            tables[name]["end_ns"] / 1e9 - tables[name]["start_ns"] / 1e9,
            edges,
        )
        / (edges[1] - edges[0])
        for name in ("gradients", "waits")
    }
    begin = 0.0 if run.mode == "simulated" else total / 2
    start, end = _stretch(tables, begin, total, most)
    kept = {
        name: table[(table["end_ns"] / 1e9 >= start) & (table["start_ns"] / 1e9 <= end)]
        for name, table in tables.items()
    }
    messages = kept["messages"]
    view = min(_view(run, tables, begin), end - start)
    return {
        "nodes": node_names(run),
        "workers": run.experiment.cluster.workers,
        "seconds": total,
        "computing": packed(np.clip(shares["gradients"], 0, 1), "f4"),
        "waiting": packed(np.clip(shares["waits"], 0, 1), "f4"),
        "kept": [start, end],
        "view": [begin, begin + view],
        "events": sum(map(len, tables.values())),
        "events_kept": sum(map(len, kept.values())),
        "gradients": _bars(kept["gradients"]),
        "waits": _bars(kept["waits"]),
        "messages": {
            "source": packed(messages["source"], "i2"),
            "to": packed(messages["to"], "i2"),
            "kind": packed(messages["kind"], "u1"),
            "bytes": packed(messages["bytes"], "f4"),
            "start": packed(messages["start_ns"] / 1e9),
            "length": packed((messages["end_ns"] - messages["start_ns"]) / 1e9, "f4"),
            "lost": packed(messages["outcome"] == LOST, "u1"),
        },
        "kinds": trace.kinds,
        "faults": fault_list(run),
    }


def _bars(table: NDArray[Any]) -> dict[str, Any]:
    return {
        "node": packed(table["node"], "i2"),
        "start": packed(table["start_ns"] / 1e9),
        "length": packed((table["end_ns"] - table["start_ns"]) / 1e9, "f4"),
    }


def _stretch(
    tables: dict[str, NDArray[Any]], begin: float, total: float, most: int
) -> tuple[float, float]:
    """The longest stretch of seconds with no more than so many events: all, or from `begin` on."""
    starts = np.sort(np.concatenate([table["start_ns"] for table in tables.values()])) / 1e9
    if len(starts) <= most:
        return 0.0, total
    first = int(np.searchsorted(starts, begin))
    last = min(first + most, len(starts) - 1)
    return begin, float(starts[last])


def _spans(table: NDArray[Any]) -> NDArray[Any]:
    return table[["node", "start_ns", "end_ns"]].astype(SPAN)


def _view(run: Run, tables: dict[str, NDArray[Any]], begin: float) -> float:
    """Seconds that the first view spans: few enough events to tell each from the next."""
    gradients, messages = run.trace.gradients, tables["messages"]
    if not len(gradients):
        return max(run.seconds, 1e-9)
    workers = run.experiment.cluster.workers
    wanted, least, most_each = GRADIENTS
    each = min(max(wanted // workers, least), most_each)
    ended = [gradients["end_ns"][gradients["node"] == worker] / 1e9 for worker in range(workers)]
    ended = [np.sort(ends[ends >= begin])[:each] for ends in ended]
    lasts = [ends[-1] for ends in ended if len(ends)]
    span = float(np.median(lasts)) - begin if lasts else run.seconds
    # Local methods compute long before they send anything.
    sent = messages["end_ns"][messages["start_ns"] / 1e9 >= begin] / 1e9
    if len(sent):
        span = max(span, 1.2 * (float(sent.min()) - begin))
    bars = np.concatenate([tables["gradients"]["start_ns"], tables["waits"]["start_ns"]]) / 1e9
    later = np.sort(bars[bars >= begin]) - begin
    most = float(later[DRAWN]) if len(later) > DRAWN else run.seconds
    return max(min(span, most, run.seconds), 1e-9)
