"""Which edge touches which vertex: how sparse that is, and edges with a chosen sparsity.

Source: Niu et al., "HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient Descent",
NIPS 2011, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiling import compiled

WORK = 400_000_000
"""Incidences that are looked at for rho; more of them take seconds."""
RAREST = 1e-4
"""The least chance of drawing a vertex that the largest edge has not got yet."""


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """The paper's three numbers.

    Args:
        omega: the largest number of vertices that an edge touches.
        delta: the largest fraction of the edges that one vertex is in.
        rho: the largest fraction of the edges that one edge meets, itself among them.
        exact: whether rho is that, or the largest that was found before the search was given up.
    """

    omega: int
    delta: float
    rho: float
    exact: bool = True

    def __str__(self) -> str:
        least = "" if self.exact else "at least "
        return f"Omega {self.omega:,}, Delta {self.delta:.3g}, rho {least}{self.rho:.3g}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Hypergraph:
    """Edges as lists of vertices.

    Args:
        offsets: where each edge's vertices begin, and the last one's end (|E| + 1,) int64.
        vertices: of all edges, one after the other (entries,) int32; increasing in each.
        count: how many vertices there are.

    Raises:
        ValueError: if an edge has no vertices, or not in increasing order.
    """

    offsets: NDArray[np.int64]
    vertices: NDArray[np.int32]
    count: int

    def __post_init__(self) -> None:
        wrong = "an edge's vertices have to increase, and there has to be one"
        if (np.diff(self.offsets) < 1).any():
            raise ValueError(wrong)
        inside = np.ones(len(self.vertices), bool)
        inside[self.offsets[:-1]] = False
        # Threads take their locks in this order, so that none waits for another in a circle.
        if (inside[1:] & (np.diff(self.vertices) <= 0)).any():
            raise ValueError(wrong)

    @property
    def edges(self) -> int:
        return len(self.offsets) - 1

    def degrees(self) -> NDArray[np.int64]:
        """Of each vertex, the number of edges that it is in (count,)."""
        return np.bincount(self.vertices, minlength=self.count)

    def sparsity(self) -> Sparsity:
        degrees = self.degrees()
        sizes = np.diff(self.offsets)
        # The edges of each vertex, one vertex after the other.
        incident = np.repeat(np.arange(self.edges), sizes)[np.argsort(self.vertices, kind="stable")]
        starts = np.concatenate([[0], np.cumsum(degrees)])
        bounds = np.add.reduceat(degrees[self.vertices], self.offsets[:-1]) - sizes + 1
        bounds = np.minimum(bounds, self.edges)
        order = np.argsort(-bounds, kind="stable")
        most, exact = _most_met(self.offsets, self.vertices, starts, incident, bounds, order, WORK)
        return Sparsity(
            omega=int(sizes.max()),
            delta=float(degrees.max() / self.edges),
            rho=most / self.edges,
            exact=bool(exact),
        )


@compiled
def _most_met(
    offsets: Any, vertices: Any, starts: Any, incident: Any, bounds: Any, order: Any, work: int
) -> Any:
    """The largest number of edges that one edge meets, and whether all that could be were tried."""
    met_by = np.full(len(order), -1)
    most = 0
    for edge in order:
        if bounds[edge] <= most:
            return most, True
        if work < 0:
            return most, False
        met = 0
        for k in range(offsets[edge], offsets[edge + 1]):
            vertex = vertices[k]
            work -= starts[vertex + 1] - starts[vertex]
            for i in range(starts[vertex], starts[vertex + 1]):
                if met_by[incident[i]] != edge:
                    met_by[incident[i]] = edge
                    met += 1
        most = max(most, met)
    return most, True


def circulant(edges: int, vertices: int, pattern: NDArray[np.int64]) -> Hypergraph:
    """Edge e touches the vertices (e + a) mod `vertices` for all a in the pattern (Omega,).

    If `edges` is a multiple of `vertices`, every vertex is in the same number of edges, Delta is
    Omega / vertices, and rho is the number of differences a - b of the pattern over `vertices`.
    """
    touched = (np.arange(edges)[:, None] + pattern) % vertices
    offsets = np.arange(edges + 1, dtype=np.int64) * len(pattern)
    return Hypergraph(
        offsets=offsets, vertices=np.sort(touched).astype(np.int32).ravel(), count=vertices
    )


def pattern_for(omega: int, vertices: int, rho: float) -> NDArray[np.int64]:
    """The pattern (omega,) of a circulant hypergraph whose rho is as near to `rho` as was found.

    The least is (2 Omega - 1) / vertices, of neighbours, and the most (Omega^2 - Omega + 1) /
    vertices, where no difference occurs twice. Between them a pattern begins with neighbours and
    goes on with vertices that are far from one another.
    """
    few, many = 1, omega
    found: list[NDArray[np.int64]] = []
    while few <= many:
        together = (few + many) // 2
        pattern = _spread(omega, vertices, together)
        found.append(pattern)
        if differences(pattern, vertices) > rho * vertices:
            few = together + 1
        else:
            many = together - 1
    return min(found, key=lambda pattern: abs(differences(pattern, vertices) - rho * vertices))


def differences(pattern: NDArray[np.int64], vertices: int) -> int:
    """How many differences modulo `vertices` the pattern has, 0 among them."""
    present = np.zeros(vertices, bool)
    # One after the other: all at once they are Omega^2.
    for vertex in pattern:
        present[(vertex - pattern) % vertices] = True
    return int(present.sum())


def _spread(omega: int, vertices: int, together: int) -> NDArray[np.int64]:
    """`together` neighbours, then of some random vertices that which adds most differences."""
    rng = np.random.default_rng(omega)
    pattern = np.arange(together, dtype=np.int64)
    present = np.zeros(vertices, bool)
    # Of the neighbours.
    present[pattern] = present[-pattern % vertices] = True
    while len(pattern) < omega:
        candidates = rng.integers(together, vertices, 32)
        candidates = candidates[~np.isin(candidates, pattern)]
        gaps = (candidates[:, None] - pattern) % vertices
        if len(candidates):
            best = int(np.argmax((~present[gaps]).sum(1)))
            pattern = np.append(pattern, candidates[best])
            present[gaps[best]] = present[-gaps[best] % vertices] = True
    return pattern


def random_edges(
    sizes: NDArray[np.int64], vertices: int, skew: float, rng: np.random.Generator
) -> Hypergraph:
    """Edges of those sizes; vertex number k of a random order is drawn as often as 1 / k^skew.

    A vertex that an edge has already is drawn again.

    Raises:
        ValueError: if so few vertices are drawn nearly always that this takes too long.
    """
    weights = np.arange(1, vertices + 1, dtype=np.float64) ** -skew
    chances = np.cumsum(weights)
    most = int(sizes.max())
    left = weights[most - 1 :].sum() / chances[-1]
    if left < RAREST:
        raise ValueError(
            f"skew is {skew:g}: an edge of {most:,} vertices would take forever to draw, as nearly "
            "all draws are of the same few; choose a smaller one"
        )
    names = rng.permutation(vertices)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    drawn = _draw(offsets, chances / chances[-1], names, rng)
    return Hypergraph(offsets=offsets, vertices=drawn, count=vertices)


@compiled
def _draw(offsets: Any, chances: Any, names: Any, rng: Any) -> Any:
    drawn = np.empty(offsets[-1], np.int32)
    taken_by = np.full(len(names), -1)
    for edge in range(len(offsets) - 1):
        begin, end = offsets[edge], offsets[edge + 1]
        place = begin
        while place < end:
            number = min(np.searchsorted(chances, rng.random()), len(names) - 1)
            if taken_by[number] != edge:
                taken_by[number] = edge
                drawn[place] = names[number]
                place += 1
        drawn[begin:end].sort()
    return drawn
