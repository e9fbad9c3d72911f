"""Topologies: who may send to whom at each round, and with which weights.

A topology is pure data: it can be built, compared, printed and tested with nothing running. Methods
read it through `neighbors`; `offbeat.mixing` turns it into mixing matrices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray


class Topology(ABC):
    """Who sends to whom among `size` workers, ranked from 0, at each round.

    Subclasses are frozen, hashable dataclasses that define `out_neighbors` and `in_neighbors`;
    those that vary with the round define `period`, those with weights of their own `column`.
    """

    @abstractmethod
    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        """Ranks that `rank` sends to at `round`; never itself."""

    @abstractmethod
    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        """Ranks that send to `rank` at `round`; never itself."""

    def period(self, size: int) -> int | None:
        """Rounds after which the topology repeats: 1 if static, None if random."""
        return 1

    def column(self, rank: int, size: int, round: int) -> Mapping[int, float]:
        """Column `rank` of the mixing matrix, {receiver: weight} with `rank` itself; sums to 1.

        Uniform, 1 / (out-degree + 1), unless the topology says otherwise.
        """
        receivers = (rank, *self.out_neighbors(rank, size, round))
        return dict.fromkeys(receivers, 1 / len(receivers))

    def validate(self, size: int) -> None:
        """Raise ValueError unless the edges of one period, taken together, connect `size` workers.

        A random topology has no period to go through: only its size is checked here.
        """
        if size < 1:
            raise ValueError(f"size is {size}: a topology needs at least one worker")
        rounds = range(self.period(size) or 0)
        if not rounds:
            return

        def out(rank: int) -> Iterable[int]:
            return (peer for k in rounds for peer in self.out_neighbors(rank, size, k))

        def into(rank: int) -> Iterable[int]:
            return (peer for k in rounds for peer in self.in_neighbors(rank, size, k))

        # Strongly connected: worker 0 reaches everyone, and everyone reaches worker 0.
        if (lost := _first_unreached(size, out)) is not None:
            source, target = 0, lost
        elif (lost := _first_unreached(size, into)) is not None:
            source, target = lost, 0
        else:
            return
        raise ValueError(
            f"{type(self).__name__} does not connect {size} workers: no path leads from worker "
            f"{source} to worker {target}; add an edge between their components"
        )

    def graph(self, size: int, round: int = 0) -> nx.DiGraph[int]:
        """The directed graph of that round, with nodes 0 to size - 1."""
        graph: nx.DiGraph[int] = nx.DiGraph()
        graph.add_nodes_from(range(size))
        for rank in range(size):
            graph.add_edges_from((rank, peer) for peer in self.out_neighbors(rank, size, round))
        return graph


@dataclass(frozen=True, kw_only=True)
class Ring(Topology):
    """Undirected ring: both neighbours."""

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        if size <= 2:
            return (1 - rank,) if size == 2 else ()
        return (rank - 1) % size, (rank + 1) % size

    in_neighbors = out_neighbors


@dataclass(frozen=True, kw_only=True)
class Complete(Topology):
    """Everyone with everyone."""

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        ranks = _ranks(size)
        return ranks[:rank] + ranks[rank + 1 :]

    in_neighbors = out_neighbors


@dataclass(frozen=True, kw_only=True)
class Star(Topology):
    """Everyone with rank 0, the centre."""

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return (0,) if rank else tuple(range(1, size))

    in_neighbors = out_neighbors


@dataclass(frozen=True, kw_only=True)
class Exponential(Topology):
    """Static directed exponential graph: i sends to i + 2^k mod n for every 2^k < n."""

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return tuple((rank + (1 << k)) % size for k in range(_hops(size)))

    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return tuple((rank - (1 << k)) % size for k in range(_hops(size)))


@dataclass(frozen=True, kw_only=True)
class OnePeerExponential(Topology):
    """One hop of the exponential graph per round: at round k, i sends to

        i + 2^(k mod (floor(log2(n - 1)) + 1)) mod n.

    With n a power of two, log2(n) rounds average exactly.

    Reference: Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019.
    """

    def period(self, size: int) -> int:
        return max(1, _hops(size))

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return ((rank + (1 << round % _hops(size))) % size,) if size > 1 else ()

    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return ((rank - (1 << round % _hops(size))) % size,) if size > 1 else ()


@dataclass(frozen=True, kw_only=True)
class BipartiteMatching(Topology):
    """At each round a random matching of even with odd ranks; an odd size leaves one even rank out.

    The ranks left out take turns. The same seed, size and round give the same matching everywhere.

    Raises ValueError if `seed` is negative.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: give an integer >= 0")

    def period(self, size: int) -> None:
        return None

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        partner = int(_matching(self.seed, size, round)[rank])
        return () if partner == rank else (partner,)

    in_neighbors = out_neighbors


class _Listed(Topology):
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
class Graph(_Listed):
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

    __hash__ = _Listed.__hash__

    def _key(self) -> object:
        return self.edges, self.directed

    def _directed_edges(self) -> Iterable[tuple[int, int]]:
        return self.edges if self.directed else [*self.edges, *((j, i) for i, j in self.edges)]

    def validate(self, size: int) -> None:
        for i, j in self.edges:
            if not (0 <= i < size and 0 <= j < size):
                raise ValueError(
                    f"Graph has an edge ({i}, {j}) but {size} workers, ranked from 0: "
                    "renumber its nodes or change the number of workers"
                )
        super().validate(size)


@dataclass(frozen=True, kw_only=True)
class WeightedGraph(_Listed):
    """Any static graph, by its mixing matrix W of shape (n, n).

    weights[i][j] is the weight with which j's vector enters i: columns sum to 1 (push-sum), and
    rows too where the method needs a doubly stochastic W.
    """

    weights: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        rows = tuple(tuple(float(weight) for weight in row) for row in self.weights)
        object.__setattr__(self, "weights", rows)

    __hash__ = _Listed.__hash__

    def _key(self) -> object:
        return self.weights

    def _directed_edges(self) -> Iterable[tuple[int, int]]:
        return ((j, i) for i, row in enumerate(self.weights) for j, w in enumerate(row) if w)

    def column(self, rank: int, size: int, round: int) -> Mapping[int, float]:
        receivers = (rank, *self.out_neighbors(rank, size, round))
        return {i: self.weights[i][rank] for i in receivers}

    def validate(self, size: int) -> None:
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
        super().validate(size)
        require_column_stochastic(np.array(self.weights))


@dataclass(frozen=True)
class Neighbors:
    """A worker's live neighbours at one round; self_weight and the weights of `out` sum to 1."""

    out: Mapping[int, float]
    """rank -> weight with which this worker's vector enters that rank's"""
    into: tuple[int, ...]
    """ranks that send to this worker"""
    self_weight: float


def neighbors(
    topology: Topology,
    size: int,
    rank: int,
    round: int,
    live: Callable[[int], bool] | None = None,
) -> Neighbors:
    """Neighbours of `rank` at `round`, without those for which `live` is False.

    The weight of departed peers is shared out over the rest of the column in proportion, so what
    the worker keeps and sends still sums to 1; a worker left alone keeps all. Columns stay
    stochastic, hence sums over workers are conserved; a doubly stochastic W loses its row sums.
    """
    period = topology.period(size)
    if period is None:
        everyone = _neighbors(topology, size, rank, round)
    else:
        everyone = _cached_neighbors(topology, size, rank, round % period)
    if live is None:
        return everyone
    into = tuple(peer for peer in everyone.into if live(peer))
    out = {peer: weight for peer, weight in everyone.out.items() if live(peer)}
    if len(out) == len(everyone.out):
        if len(into) == len(everyone.into):
            return everyone
        return Neighbors(everyone.out, into, everyone.self_weight)
    total = everyone.self_weight + sum(out.values())
    if total == 0:
        return Neighbors(MappingProxyType({}), into, 1.0)
    rescaled = {peer: weight / total for peer, weight in out.items()}
    return Neighbors(MappingProxyType(rescaled), into, everyone.self_weight / total)


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


def _neighbors(topology: Topology, size: int, rank: int, round: int) -> Neighbors:
    out = dict(topology.column(rank, size, round))
    self_weight = out.pop(rank)
    into = topology.in_neighbors(rank, size, round)
    return Neighbors(MappingProxyType(out), into, self_weight)


# Room for 4096 workers times the 12 rounds of the one-peer exponential graph.
_cached_neighbors = lru_cache(maxsize=1 << 16)(_neighbors)


# The n tuples of a complete graph then share their n integers.
@lru_cache(maxsize=16)
def _ranks(size: int) -> tuple[int, ...]:
    return tuple(range(size))


def _hops(size: int) -> int:
    """How many powers of two are below `size`: floor(log2(n - 1)) + 1, and 0 for n = 1."""
    return (size - 1).bit_length()


# Asynchronous workers are at different rounds, so many matchings are in use at once.
@lru_cache(maxsize=1024)
def _matching(seed: int, size: int, round: int) -> NDArray[np.int32]:
    """(n,): the partner of each rank, or the rank itself where it is left out."""
    even = np.arange(0, size, 2, dtype=np.int32)
    odd = np.arange(1, size, 2, dtype=np.int32)
    if size % 2:
        even = np.delete(even, (seed + round) % len(even))
    # numpy promises the same raw bits in every version, which it does not for `permutation`.
    bits = np.asarray(np.random.PCG64([seed, round]).random_raw(len(odd)))
    odd = odd[np.argsort(bits, kind="stable")]
    partners = np.arange(size, dtype=np.int32)
    partners[even] = odd
    partners[odd] = even
    return partners


def _adjacent(edges: Iterable[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """{i: sorted j} over edges (i, j), without self-loops."""
    targets: dict[int, set[int]] = {}
    for i, j in edges:
        if i != j:
            targets.setdefault(i, set()).add(j)
    return {i: tuple(sorted(js)) for i, js in targets.items()}


def _first_unreached(size: int, step: Callable[[int], Iterable[int]]) -> int | None:
    """Lowest rank that no walk from rank 0 along `step` visits; None if all are visited."""
    seen = {0}
    frontier = [0]
    while frontier and len(seen) < size:
        for peer in step(frontier.pop()):
            if peer not in seen:
                seen.add(peer)
                frontier.append(peer)
    return next((rank for rank in range(size) if rank not in seen), None)


TOPOLOGIES: dict[str, type[Topology]] = {
    topology.__name__: topology
    for topology in (
        Ring,
        Complete,
        Star,
        Exponential,
        OnePeerExponential,
        BipartiteMatching,
        Graph,
        WeightedGraph,
    )
}
