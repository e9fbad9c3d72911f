"""What a number of a cluster's description must be, in one line if it is not."""

from __future__ import annotations

import math


def require_positive(what: str, value: float) -> None:
    if not value > 0 or not math.isfinite(value):
        raise ValueError(f"{what} is {value:g}; it must be a positive number")


def require_seconds(what: str, value: float) -> None:
    if not value >= 0 or not math.isfinite(value):
        raise ValueError(f"{what} is {value:g} s; it must not be negative")


def require_rate(what: str, value: float) -> None:
    if not value >= 1:
        raise ValueError(
            f"{what} is {value:g} bytes/s; it must be at least 1 (.inf for a network without cost)"
        )


def require_distinct(what: str, nodes: tuple[int, ...]) -> None:
    if not nodes:
        raise ValueError(f"{what} names no nodes")
    for node in nodes:
        if node < 0:
            raise ValueError(f"{what} names node {node}; nodes are numbered from 0")
        if nodes.count(node) > 1:
            raise ValueError(f"{what} names node {node} twice")
