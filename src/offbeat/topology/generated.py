"""Static random graphs, drawn by networkx from a seed."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import networkx as nx

from .base import Topology

TRIES = 100
"""Graphs drawn, each from a further seed, until one is connected."""


class Generated(Topology):
    """An undirected static graph that networkx draws once for each size."""

    @abstractmethod
    def generate(self, size: int) -> nx.Graph[int]:
        """A connected graph with nodes 0 to size - 1; the same at every call."""

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return _adjacency(self, size)[rank]

    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return _adjacency(self, size)[rank]


@dataclass(frozen=True, kw_only=True)
class RandomRegular(Generated):
    """A random connected graph in which every worker has the same number of neighbours.

    Args:
        degree: that number, at least 2; degree times workers must be even.
        seed: of the draw, at least 0.

    Raises ValueError for other values.

    Reference: Kim, Vu, "Generating Random Regular Graphs", STOC 2003 (networkx's algorithm).
    """

    degree: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.degree < 2:
            raise ValueError(f"degree is {self.degree}: give an integer >= 2")
        _require_seed(self.seed)

    def require_size(self, size: int) -> None:
        if size <= self.degree:
            raise ValueError(
                f"RandomRegular(degree={self.degree}) needs at least {self.degree + 1} workers, "
                f"not {size}: give a smaller degree"
            )
        if self.degree * size % 2:
            raise ValueError(
                f"RandomRegular(degree={self.degree}) does not exist for {size} workers, since "
                f"their product is odd: give an even degree or an even number of workers"
            )

    def generate(self, size: int) -> nx.Graph[int]:
        self.require_size(size)
        for k in range(TRIES):
            graph = nx.random_regular_graph(self.degree, size, seed=self.seed + k)
            if nx.is_connected(graph):
                return graph
        raise _unconnected(f"RandomRegular(degree={self.degree}, seed={self.seed})", size, "degree")


@dataclass(frozen=True, kw_only=True)
class SmallWorld(Generated):
    """A ring of near neighbours with some edges led elsewhere; connected.

    Args:
        neighbors: k, nearest on the ring, half of them on either side: even, at least 2.
        rewiring: p in [0, 1], the chance with which an edge gets another end.
        seed: of the draw, at least 0.

    Raises ValueError for other values.

    Reference: Watts, Strogatz, "Collective Dynamics of 'Small-World' Networks", Nature 1998.
    """

    neighbors: int = 4
    rewiring: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.neighbors < 2 or self.neighbors % 2:
            raise ValueError(f"neighbors is {self.neighbors}: give an even integer >= 2")
        if not 0 <= self.rewiring <= 1:
            raise ValueError(f"rewiring is {self.rewiring}: give a number from 0 to 1")
        _require_seed(self.seed)

    def require_size(self, size: int) -> None:
        if size <= self.neighbors:
            raise ValueError(
                f"SmallWorld(neighbors={self.neighbors}) needs at least {self.neighbors + 1} "
                f"workers, not {size}: give fewer neighbours"
            )

    def generate(self, size: int) -> nx.Graph[int]:
        self.require_size(size)
        try:
            return nx.connected_watts_strogatz_graph(
                size, self.neighbors, self.rewiring, tries=TRIES, seed=self.seed
            )
        except nx.NetworkXError:
            raise _unconnected(
                f"SmallWorld(neighbors={self.neighbors}, rewiring={self.rewiring}, "
                f"seed={self.seed})",
                size,
                "neighbors",
            ) from None


# `neighbors` asks at every step, and large graphs take seconds to draw.
@lru_cache(maxsize=64)
def _adjacency(topology: Generated, size: int) -> tuple[tuple[int, ...], ...]:
    graph = topology.generate(size)
    return tuple(tuple(sorted(graph.adj[rank])) for rank in range(size))


def _require_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"seed is {seed}: give an integer >= 0")


def _unconnected(name: str, size: int, setting: str) -> ValueError:
    return ValueError(
        f"none of {TRIES} graphs {name} connects {size} workers: give a greater {setting}"
    )
