"""Records: what a host writes down of its nodes, for trace, journals and coordinator."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from time import monotonic_ns
from typing import Any

from ..messages import codec_of
from ..node import Node
from ..trace import Trace
from .causes import Cause
from .journal import Journal


class Records:
    """Of one host. Under the host's lock.

    Args:
        folder: where each node's journal is kept; there is none if not given.
        traces: whether somebody will read the trace; it grows with every step.
    """

    def __init__(self, folder: Path | None, *, traces: bool) -> None:
        self.traces = traces
        self.trace = Trace()
        self.began = monotonic_ns()
        """Time 0 of the run on the monotonic clock, in nanoseconds."""
        self.steps = self.computed = self.bytes_sent = 0
        """Since the run began, or went back to a checkpoint; `computed` are gradients."""
        self.sent: Counter[tuple[int, int]] = Counter()
        self.received: Counter[tuple[int, int]] = Counter()
        """Messages, by sender and receiver."""
        self._folder = folder
        self.journals: dict[int, Journal] = {}
        self.waiting_since: dict[int, int] = {}
        """Nanoseconds, of workers that wait for anything but a gradient; where there is a trace."""

    @property
    def elapsed(self) -> int:
        """Nanoseconds since the run began."""
        return monotonic_ns() - self.began

    def open(self, rank: int, machine: int, saved: bytes | None) -> None:
        """Begin a node's journal, with the state beside it that the node goes on from."""
        if self._folder is None:
            return
        path = self._folder / f"node-{rank}.journal"
        self.journals[rank] = Journal(path, machine)
        beside = path.with_suffix(".safetensors")
        beside.unlink(missing_ok=True)
        if saved is not None:
            beside.write_bytes(saved)

    def close(self) -> None:
        """End the journals."""
        for journal in self.journals.values():
            journal.close()
        self.journals.clear()

    def reset(self) -> None:
        """End the journals, and count from nothing; the trace goes on."""
        self.close()
        self.waiting_since.clear()
        self.sent.clear()
        self.received.clear()
        self.steps = self.computed = self.bytes_sent = 0

    def note(self, rank: int, task: int, cause: Cause, time: int | None = None) -> None:
        """Write down in its journal why a task of that node goes on."""
        journal = self.journals.get(rank)
        if journal is not None:
            journal.append(task, cause, monotonic_ns() - self.began if time is None else time)

    def gradient(self, rank: int, began: int, loss: float) -> None:
        self.computed += 1
        if self.traces:
            self.trace.rows["gradients"].append((rank, began, monotonic_ns() - self.began, loss))

    def step(self, node: Node, staleness: int, mixes: int) -> None:
        self.steps += 1
        if self.traces:
            row = (node.rank, monotonic_ns() - self.began, node.versions[0], staleness, mixes)
            self.trace.rows["steps"].append(row)

    def waits(self, rank: int) -> None:
        if self.traces:
            self.waiting_since[rank] = monotonic_ns() - self.began

    def waits_no_more(self, rank: int) -> None:
        since = self.waiting_since.pop(rank, None)
        if since is not None:
            self.trace.rows["waits"].append((rank, since, monotonic_ns() - self.began))

    def fault(self, rank: int, kind: int) -> None:
        if self.traces:
            self.trace.rows["faults"].append((rank, self.elapsed, kind, 1.0))

    def message(self, source: int, to: int, message: Any, sent: int, outcome: int) -> None:
        if self.traces:
            kind = self.trace.kind(type(message).__name__)
            size = codec_of(type(message)).size(message)
            row = (source, to, kind, size, sent, sent, monotonic_ns() - self.began, outcome)
            self.trace.rows["messages"].append(row)
