"""Collectives as plain messages between nodes, so that they run wherever methods run."""

from __future__ import annotations

from .algorithm import Algorithm as Algorithm
from .algorithm import Chunk as Chunk
from .compressed import CompressedVector as CompressedVector
from .compressed import compressed_mean as compressed_mean
from .direct import DIRECT
from .exchange import exchange as exchange
from .ring import RING
from .ring import chunk_bounds as chunk_bounds
from .ring import ring_all_reduce as ring_all_reduce
from .ring import ring_mean as ring_mean
from .server import SERVER
from .sharded import sharded_step as sharded_step
from .shared import SHARED as SHARED
from .shared import is_whole as is_whole
from .shared import shared_all_reduce as shared_all_reduce
from .tree import TREE
from .whole_ring import WHOLE_RING

ALGORITHMS: dict[str, Algorithm] = {
    "ring": RING,
    "whole-ring": WHOLE_RING,
    "direct": DIRECT,
    "tree": TREE,
    "server": SERVER,
    "shared": SHARED,
}
"""By the name that `Cluster.all_reduce` gives them."""


def algorithm_for(name: str, on_one_machine: bool) -> Algorithm:
    """What a real run reduces with: members of one machine need no ring, and get its bits."""
    return SHARED if name == "ring" and on_one_machine else ALGORITHMS[name]


def cost(algorithm: str, nodes: int, size: float, latency: float, bandwidth: float) -> float:
    """Seconds of one all-reduce of `size` bytes over `nodes` that all enter it at once.

    `latency` is in seconds, `bandwidth` in bytes per second of each node's line in each
    direction. Closed forms; `tree` is exact for powers of two and an upper bound otherwise.

    Raises:
        ValueError: no such algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"no all-reduce is called {algorithm!r}; there are {', '.join(ALGORITHMS)}"
        )
    return ALGORITHMS[algorithm].seconds(nodes, size, latency, bandwidth)
