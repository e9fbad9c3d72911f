"""Graph cuts: labels of vertices that agree with their neighbours and with the terminals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .graphs import Graph, grid, read_dimacs, read_image
from .hypergraph import Hypergraph
from .kinds import CutCosts
from .problem import Instance, SparseProblem, at_least

SOLVED = 50_000
"""Vertices up to which the least cut is computed: beyond them it takes seconds."""
CAPACITY = 10
"""The largest weight of a drawn edge."""


@dataclass(frozen=True, kw_only=True)
class GraphCut(SparseProblem):
    """The cheapest cut between terminals, as points x_v of a simplex with a corner per terminal.

    f(x) = 1/|E| sum over edges (u, v) of w_uv |x_u - x_v|_1; the x of a terminal is its corner.
    After each step on x_v it is projected onto the simplex. Edges are undirected. Between two
    terminals the least objective is that of the minimum cut, by maximum flow.

    A drawn image holds a ball for every label but the first, whose intensities are spaced evenly,
    in noise. A pixel is joined to its neighbours the more strongly the more alike they are, and to
    a terminal the more strongly the nearer its intensity is. Weights are whole numbers.

    Args:
        rows: of the drawn image.
        columns: of it.
        depth: of it, in slices; with more than one, pixels have six neighbours instead of four.
        ways: labels.
        noise: standard deviation of what is added to intensities, which are from 0 to 1.
        seed: of what is drawn.
        image: read this picture instead, in grey.
        graph: read this graph instead, in DIMACS's format for maximum flow; it has two terminals.

    Raises:
        ValueError: if a field is out of range.

    Reference: Niu et al., "HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient
    Descent", NIPS 2011, section 2.
    """

    rows: int = 64
    columns: int = 64
    depth: int = 1
    ways: int = 2
    noise: float = 0.3
    seed: int = 0
    image: str | None = None
    graph: str | None = None

    step: ClassVar[float] = 0.01

    def __post_init__(self) -> None:
        at_least(1, rows=self.rows, columns=self.columns, depth=self.depth)
        at_least(2, ways=self.ways)
        at_least(0, noise=self.noise)
        if self.image is not None and self.graph is not None:
            raise ValueError(f"image {self.image} and graph {self.graph}: give one of the two")
        if self.graph is not None and self.ways != 2:
            raise ValueError(f"ways is {self.ways}; the graph of a file has two terminals")

    def build(self, precision: DTypeLike) -> Instance:
        if self.graph is not None:
            graph = read_dimacs(Path(self.graph).expanduser())
        elif self.image is not None:
            image = read_image(Path(self.image).expanduser())
            graph = grid(image, self.ways, CAPACITY)
        else:
            graph = grid(self._draw(), self.ways, CAPACITY)
        # Edges that lie side by side are taken one after the other, and should not be neighbours.
        order = np.random.default_rng(self.seed).permutation(len(graph.weights))
        return cut_instance(graph.take(order), precision)

    def _draw(self) -> NDArray[np.float64]:
        """Intensities (depth, rows, columns)."""
        rng = np.random.default_rng(self.seed)
        shape = np.array([self.depth, self.rows, self.columns])
        places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        image = np.zeros(shape)
        for label in range(1, self.ways):
            centre = shape * rng.uniform(0.25, 0.75, 3)
            radius = shape[1:].min() * rng.uniform(0.2, 0.35)
            inside = ((places - centre) ** 2).sum(-1) < radius**2
            image[inside] = label / (self.ways - 1)
        return image + self.noise * rng.standard_normal(shape)


def cut_instance(graph: Graph, precision: DTypeLike = np.float32) -> Instance:
    """The problem of some graph."""
    sizes = np.where(graph.terminals < 0, 2, 1)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    vertices = np.empty(offsets[-1], np.int32)
    vertices[offsets[:-1]] = graph.ends[:, 0]
    pairs = graph.terminals < 0
    vertices[offsets[:-1][pairs] + 1] = graph.ends[pairs, 1]
    edges = Hypergraph(offsets=offsets, vertices=vertices, count=graph.vertices)
    ways = graph.ways
    costs = CutCosts(
        offsets=edges.offsets,
        vertices=edges.vertices,
        weights=graph.weights.astype(precision),
        terminals=graph.terminals.astype(np.int32),
        ways=ways,
    )
    start = np.full(graph.vertices * ways, 1 / ways)

    def rounded(x: NDArray[Any]) -> dict[str, float]:
        """The cost of giving every vertex the label that it is nearest to."""
        labels = x.reshape(-1, ways).argmax(1)
        ends = np.where(pairs, labels[graph.ends[:, 1]], graph.terminals)
        apart = labels[graph.ends[:, 0]] != ends
        return {"cut": float(graph.weights[apart].sum())}

    # The flow is at most the weight of all edges, and is added up in 32 bits.
    small = ways == 2 and graph.vertices <= SOLVED and graph.weights.sum() < 2**31
    return Instance(
        costs=costs,
        hypergraph=edges,
        edges=edges.edges,
        vertices=graph.vertices,
        start=start.astype(precision),
        errors=rounded,
        # Both coordinates of a vertex on the other side differ by 1.
        optimum=2 * graph.minimum_cut() / edges.edges if small else None,
    )
