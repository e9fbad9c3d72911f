"""Faults: what befalls single nodes, and which plans of them make sense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .checks import require_positive

KINDS = ("crash", "leave", "join", "slow")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that befalls node `rank` at `at` seconds.

    A node may depart and join again, several times. One whose first fault of these kinds is a
    join is absent until then.

    Args:
        kind: crash (at once, with what it holds), leave (at its next round), join (with the
            model of that moment), slow (its gradients take `factor` times as long from `at` to
            `until`).
        rank: the node; workers come first, servers after them.
        at: seconds since the run began.
        factor: only for slow.
        until: only for slow, seconds since the run began.
    """

    kind: Literal["crash", "leave", "join", "slow"]
    rank: int
    at: float
    factor: float = 1.0
    until: float = float("inf")

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"fault of node {self.rank}: kind {self.kind!r} is none of crash, leave, join, slow"
            )
        if not self.at >= 0 or not math.isfinite(self.at):
            raise ValueError(f"fault {self.kind} of node {self.rank}: at is {self.at:g} seconds")
        if self.kind == "slow":
            require_positive(f"fault slow of node {self.rank}: factor", self.factor)
            if not self.until > self.at:
                raise ValueError(
                    f"fault slow of node {self.rank}: until is {self.until:g} seconds, and it "
                    f"begins at {self.at:g}"
                )


def comings_and_goings(faults: Sequence[Fault], rank: int) -> list[Fault]:
    """That node's crashes, departures and arrivals, in order of time."""
    own = [fault for fault in faults if fault.rank == rank and fault.kind != "slow"]
    return sorted(own, key=lambda fault: fault.at)


def require_sense(faults: Sequence[Fault]) -> None:
    """Whoever departs is there, and whoever joins is not.

    Raises:
        ValueError: naming the first fault that cannot happen.
    """
    for rank in sorted({fault.rank for fault in faults}):
        before: Fault | None = None
        for fault in comings_and_goings(faults, rank):
            if before is not None and fault.at == before.at:
                raise ValueError(
                    f"cluster.faults: node {rank} has both a {before.kind} and a {fault.kind} at "
                    f"{fault.at:g} s; say which comes first"
                )
            if before is not None and (before.kind == "join") == (fault.kind == "join"):
                there = "there already" if fault.kind == "join" else "not there any more"
                raise ValueError(
                    f"cluster.faults: {fault.kind} of node {rank} at {fault.at:g} s, but since its "
                    f"{before.kind} at {before.at:g} s it is {there}"
                )
            before = fault
