"""Static graphs whose edges or weights are listed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from .base import Topology


class Listed(Topology):
    """A static graph whose edges are listed, so that adjacency and hash are computed once."""

    @abstractmethod
    def _key(self) -> object:
        """All fields, hashable."""

    @abstractmethod
    def _directed_edges(self) -> Iterable[tuple[int, int]]:
        """(sender, receiver); repeats and self-loops allowed."""

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return self._adjacency[0].get(rank, ())

    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return self._adjacency[1].get(rank, ())

    @cached_property
    def _adjacency(self) -> tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, ...]]]:
        edges = list(self._directed_edges())
        return _adjacent(edges), _adjacent((j, i) for i, j in edges)

    # `neighbors` looks topologies up at every step, and tuples do not keep their hash.
    @cached_property
    def _hash(self) -> int:
        return hash(self._key())

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, kw_only=True)
class Graph(Listed):
    """Any static graph, by its edges (i, j): i sends to j, and j to i too unless `directed`.

    Repeated edges count once, and self-loops not at all.
    """

    edges: Sequence[tuple[int, int]]
    directed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple((int(i), int(j)) for i, j in self.edges))

    @classmethod
    def from_networkx(cls, graph: nx.Graph[Any]) -> Graph:
        """The same edges, with nodes renumbered from 0 in `node_order`; attributes are ignored."""
        rank = {node: k for k, node in enumerate(node_order(graph))}
        edges = {(rank[i], rank[j]) for i, j in graph.edges()}
        if not graph.is_directed():
            edges = {(min(edge), max(edge)) for edge in edges}
        return cls(edges=sorted(edges), directed=graph.is_directed())

    __hash__ = Listed.__hash__

    def _key(self) -> object:
        return self.edges, self.directed

    def _directed_edges(self) -> Iterable[tuple[int, int]]:
        return self.edges if self.directed else _both_ways(self.edges)

    def require_size(self, size: int) -> None:
        _require_ranks("Graph", self.edges, size)


@dataclass(frozen=True, kw_only=True)
class EdgeList(Listed):
    """A static graph from a text file: a line `i j` for each edge, from rank i to rank j.

    Ranks are separated by blanks or a comma; `#` begins a comment. j sends to i too unless
    `directed`. The file is read when the topology is built, and `path` becomes absolute. The file
    is not watched: two that name the same file are equal.

    Raises ValueError, with the number of the line, for what cannot be read.
    """

    path: str
    directed: bool = False

    def __post_init__(self) -> None:
        path = Path(self.path).expanduser().absolute()
        object.__setattr__(self, "path", str(path))
        # No field: an experiment's file names the edge list and does not repeat it.
        object.__setattr__(self, "_edges", _read_edges(path))

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        return vars(self)["_edges"]

    __hash__ = Listed.__hash__

    def _key(self) -> object:
        return self.path, self.directed

    def _directed_edges(self) -> Iterable[tuple[int, int]]:
        return self.edges if self.directed else _both_ways(self.edges)

    def require_size(self, size: int) -> None:
        _require_ranks(Path(self.path).name, self.edges, size)


@dataclass(frozen=True, kw_only=True)
class WeightedGraph(Listed):
    """Any static graph, by its mixing matrix W of shape (n, n).

    weights[i][j] is the weight with which j's vector enters i: columns sum to 1 (push-sum), and
    rows too where the method needs a doubly stochastic W.
    """

    weights: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        rows = tuple(tuple(float(weight) for weight in row) for row in self.weights)
        object.__setattr__(self, "weights", rows)

    __hash__ = Listed.__hash__

    def _key(self) -> object:
        return self.weights

    def _directed_edges(self) -> Iterable[tuple[int, int]]:
        return ((j, i) for i, row in enumerate(self.weights) for j, w in enumerate(row) if w)

    def column(self, rank: int, size: int, round: int) -> Mapping[int, float]:
        receivers = (rank, *self.out_neighbors(rank, size, round))
        return {i: self.weights[i][rank] for i in receivers}

    def require_size(self, size: int) -> None:
        for i, row in enumerate(self.weights):
            if len(row) != len(self.weights):
                raise ValueError(
                    f"row {i} of WeightedGraph has {len(row)} weights but there are "
                    f"{len(self.weights)} rows: give a square matrix"
                )
        if len(self.weights) != size:
            raise ValueError(
                f"WeightedGraph is for {len(self.weights)} workers but there are {size}: "
                f"give a ({size}, {size}) matrix or change the number of workers"
            )

    def validate(self, size: int) -> None:
        super().validate(size)
        require_column_stochastic(np.array(self.weights))


def node_order(graph: nx.Graph[Any]) -> list[Any]:
    """Nodes of a networkx graph in rank order: sorted, or as inserted where they do not sort."""
    try:
        return sorted(graph.nodes)
    except TypeError:
        return list(graph.nodes)


def require_column_stochastic(W: NDArray[np.float64], tolerance: float = 1e-9) -> None:
    """Raise ValueError unless W (n, n) is square, non-negative and its columns sum to 1."""
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise ValueError(f"mixing matrix has shape {W.shape}: give a square (n, n) matrix")
    sums = W.sum(axis=0)
    for i, j in np.argwhere(~(W >= 0)):  # nan too
        raise ValueError(
            f"column {j} of the mixing matrix has weight {float(W[i, j])} in row {i} "
            f"(the column sums to {float(sums[j])}): give weights >= 0"
        )
    for j in np.flatnonzero(~(np.abs(sums - 1) <= tolerance)):
        raise ValueError(
            f"column {j} of the mixing matrix sums to {float(sums[j])}, not 1: divide it by its "
            "sum (W[i][j] is the weight with which j's vector enters i)"
        )


def _adjacent(edges: Iterable[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """{i: sorted j} over edges (i, j), without self-loops."""
    targets: dict[int, set[int]] = {}
    for i, j in edges:
        if i != j:
            targets.setdefault(i, set()).add(j)
    return {i: tuple(sorted(js)) for i, js in targets.items()}


def _both_ways(edges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [*edges, *((j, i) for i, j in edges)]


def _require_ranks(name: str, edges: Iterable[tuple[int, int]], size: int) -> None:
    for i, j in edges:
        if not (0 <= i < size and 0 <= j < size):
            raise ValueError(
                f"{name} has an edge ({i}, {j}) but {size} workers, ranked from 0: "
                "renumber its nodes or change the number of workers"
            )


def _read_edges(path: Path) -> tuple[tuple[int, int], ...]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise ValueError(f"there is no edge list {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read edge list {path}: {error}") from error
    edges: list[tuple[int, int]] = []
    for number, line in enumerate(lines, start=1):
        ranks = line.partition("#")[0].replace(",", " ").split()
        if not ranks:
            continue
        if len(ranks) != 2 or not all(rank.isdecimal() for rank in ranks):
            raise ValueError(
                f"{path}, line {number} is {line.strip()!r}: write two ranks such as `0 1`"
            )
        edges.append((int(ranks[0]), int(ranks[1])))
    if not edges:
        raise ValueError(f"edge list {path} has no edges: write lines such as `0 1`")
    return tuple(edges)
