"""A run's trace for other programs: Perfetto and chrome://tracing, or CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import whole
from ..runs import Run
from ..trace import FAULT_KINDS, LOST, TABLES
from .html.progress import node_names

PROCESS = 1
"""All nodes are threads of one process, so that they stand below each other."""


def write_perfetto(run: Run, path: Path) -> Path:
    """Write the trace in Google's Trace Event Format, as JSON; times in microseconds.

    Every node has threads for what it computes and waits for, for what it sends and for what it
    receives; messages are flows between them, staleness is a counter, faults are instants. For
    ui.perfetto.dev and chrome://tracing.

    Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
    """
    with whole(path) as part, part.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        for k, event in enumerate(trace_events(run)):
            file.write(",\n" * (k > 0) + json.dumps(event))
        file.write("\n]}\n")
    return path


def trace_events(run: Run) -> Iterator[dict[str, Any]]:
    """The events of `write_perfetto`, one by one."""
    name = type(run.experiment.method).__name__
    yield _metadata("process_name", 0, f"{name} on {type(run.experiment.problem).__name__}")
    names, trace = node_names(run), run.trace
    threads = _Threads(names)
    work = [
        (start, end, rank, "computing", loss) for rank, start, end, loss in _rows(run, "gradients")
    ]
    work += [(start, end, rank, "waiting", math.nan) for rank, start, end in _rows(run, "waits")]
    work += [(start, end, rank, "working", math.nan) for rank, start, end in _rows(run, "work")]
    for start, end, rank, what, loss in sorted(work, key=lambda slice: slice[:4]):
        # JSON has no NaN: a loss that is none is left out.
        about = {"loss": loss} if math.isfinite(loss) else {}
        yield _slice(what, threads.at(rank, "", start, end), start, end, about)
    for k, row in enumerate(sorted(_rows(run, "messages"), key=lambda row: row[5])):
        yield from _message(k, row, trace.kinds, threads, names)
    for rank, at, version, staleness, mixes in _rows(run, "steps"):
        counter = {"ph": "C", "name": f"staleness at {names[rank]}", "pid": PROCESS, "ts": at / 1e3}
        yield counter | {"args": {"staleness": staleness}}
        step = {"version": version, "staleness": staleness, "mixes": mixes}
        yield _instant("step", threads.first(rank), at, step)
    for rank, at, kind, factor in _rows(run, "faults"):
        yield _instant(FAULT_KINDS[kind], threads.first(rank), at, {"factor": factor})
    yield from threads.metadata()


class _Threads:
    """Threads of each node, enough that no slices overlap on one; viewers cannot show that."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._numbers: dict[tuple[int, str, int], int] = {}
        self._free: dict[tuple[int, str], list[int]] = {}
        for rank in range(len(names)):
            self._number(rank, "", 0)

    def first(self, rank: int) -> int:
        """The thread of what the node computes."""
        return self._number(rank, "", 0)

    def at(self, rank: int, what: str, start: int, end: int) -> int:
        """A thread that is free for a slice; slices of one kind come in order of their starts."""
        free = self._free.setdefault((rank, what), [])
        lane = next((k for k, until in enumerate(free) if until <= start), len(free))
        free[lane : lane + 1] = [end]
        return self._number(rank, what, lane)

    def metadata(self) -> Iterator[dict[str, Any]]:
        """Names of the threads, and their order: all of a node together."""
        ordered = sorted(self._numbers.items())
        for place, ((rank, what, lane), thread) in enumerate(ordered):
            more = f" ({lane + 1})" if lane else ""
            yield _metadata("thread_name", thread, f"{self._names[rank]}{what}{more}")
            yield _metadata("thread_sort_index", thread, place)

    def _number(self, rank: int, what: str, lane: int) -> int:
        return self._numbers.setdefault((rank, what, lane), len(self._numbers) + 1)


def write_csv_tables(run: Run, directory: Path) -> list[Path]:
    """Write each table of the trace as a CSV file, with kinds and outcomes in words.

    Columns are those of `offbeat.trace.TABLES`, in nanoseconds since the run began.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, columns in TABLES.items():
        path = directory / f"{name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            names = [column for column, _ in columns]
            writer.writerow(names)
            for row in run.trace.table(name).tolist():
                writer.writerow(_worded(name, dict(zip(names, row, strict=True)), run).values())
        written.append(path)
    return written


def _worded(table: str, row: dict[str, Any], run: Run) -> dict[str, Any]:
    if table == "messages":
        outcome = "lost" if row["outcome"] == LOST else "delivered"
        return row | {"kind": run.trace.kinds[row["kind"]], "outcome": outcome}
    if table == "faults":
        return row | {"kind": FAULT_KINDS[row["kind"]]}
    return row


def _rows(run: Run, table: str) -> list[Any]:
    return run.trace.table(table).tolist()


def _message(
    k: int, row: tuple[Any, ...], kinds: list[str], threads: _Threads, names: list[str]
) -> Iterator[dict[str, Any]]:
    """The transfer as a slice at both ends, and a flow from one to the other."""
    source, to, kind, size, sent, start, end, outcome = row
    lost = outcome == LOST
    about = {"from": names[source], "to": names[to], "bytes": size, "sent_us": sent / 1e3}
    leaves = threads.at(source, " sends", start, end)
    yield _slice(kinds[kind], leaves, start, end, about | {"lost": lost})
    if lost:
        return
    arrives = threads.at(to, " receives", start, end)
    yield _slice(kinds[kind], arrives, start, end, about)
    flow = {"name": kinds[kind], "cat": "message", "id": k, "pid": PROCESS}
    yield {"ph": "s", **flow, "tid": leaves, "ts": start / 1e3}
    # It binds to the slice that encloses it: the last nanosecond is inside.
    yield {"ph": "f", "bp": "e", **flow, "tid": arrives, "ts": max(start, end - 1) / 1e3}


def _slice(name: str, thread: int, start: int, end: int, about: dict[str, Any]) -> dict[str, Any]:
    where = {"ph": "X", "name": name, "cat": "offbeat", "pid": PROCESS, "tid": thread}
    return where | {"ts": start / 1e3, "dur": (end - start) / 1e3, "args": about}


def _instant(name: str, thread: int, at: int, about: dict[str, Any]) -> dict[str, Any]:
    where = {"ph": "i", "s": "t", "name": name, "cat": "offbeat", "pid": PROCESS, "tid": thread}
    return where | {"ts": at / 1e3, "args": about}


def _metadata(what: str, thread: int, value: object) -> dict[str, Any]:
    key = "sort_index" if what.endswith("sort_index") else "name"
    return {"ph": "M", "name": what, "pid": PROCESS, "tid": thread, "args": {key: value}}
