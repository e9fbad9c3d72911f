"""Pictures of topologies: small multiples, a panel for each round that is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from numpy.typing import NDArray

from ..topology import (
    EdgeList,
    Graph,
    Line,
    MetropolisHastings,
    RandomRegular,
    SelfWeight,
    Star,
    Topology,
    Torus,
    Tree,
    WeightedGraph,
)

Positions = dict[int, NDArray[np.float64]]
NODE, EDGE, TEXT = "#0072B2", "#8A9AA8", "#333333"
ROUNDS = 6
"""Panels of one time-varying topology, at most; random ones get half of them."""
NUMBERED = 32
"""Up to so many workers their ranks are written."""


def draw_topologies(
    topologies: Mapping[str, Topology], size: int, path: Path, round: int | None = None
) -> Path:
    """Draw each topology among `size` workers to a file, as PNG or SVG by its ending.

    Time-varying ones get a panel for each round of the period, up to `ROUNDS`; or `round` alone.
    Edges without arrows go both ways.
    """
    panels = [
        (label, topology, k)
        for label, topology in topologies.items()
        for k in _rounds(topology, size, round)
    ]
    columns = min(len(panels), max(math.ceil(math.sqrt(len(panels))), min(len(panels), 4)))
    rows = math.ceil(len(panels) / columns)
    # The same bytes at every call.
    with mpl.rc_context({"svg.hashsalt": "offbeat", "font.size": 9}):
        figure = Figure(figsize=(2.6 * columns, 2.75 * rows), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        places = {label: positions(topology, size) for label, topology in topologies.items()}
        for axes, (label, topology, k) in zip(grid.flat, panels, strict=False):
            _draw(axes, topology, size, k, places[label])
            axes.set_title(_title(label, topology, size, k), color=TEXT, fontsize=9)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def positions(topology: Topology, size: int) -> Positions:
    """Where each worker is drawn, {rank: (2,)}, so that the structure shows."""
    graph: nx.Graph[int] = nx.Graph(topology.graph(size).edges)
    graph.add_nodes_from(range(size))
    match topology:
        case MetropolisHastings() | SelfWeight():
            return positions(topology.topology, size)
        case Torus():
            columns = topology.shape(size)[1]
            if topology.shape(size)[0] > 1 and columns > 1:
                return {k: np.array([k % columns, -(k // columns)], float) for k in range(size)}
            return _circle(size)
        case Line():
            columns = max(2, math.ceil(math.sqrt(size)))  # A long line is folded.
            return {k: _folded(k, columns) for k in range(size)}
        case Star() if size > 2:
            ring = _circle(size - 1)
            return {0: np.zeros(2)} | {k: ring[k - 1] for k in range(1, size)}
        case Tree():
            return _layers(topology, size)
        case Graph() | EdgeList() | WeightedGraph() | RandomRegular() if 2 < size <= 200:
            return nx.kamada_kawai_layout(graph, pos=_circle(size))
        case _:
            return _circle(size)


def _circle(size: int) -> Positions:
    """Rank 0 at the top, then clockwise."""
    angles = np.pi / 2 - 2 * np.pi * np.arange(size) / size
    return {k: np.array([np.cos(angle), np.sin(angle)]) for k, angle in enumerate(angles)}


def _folded(rank: int, columns: int) -> NDArray[np.float64]:
    row, column = divmod(rank, columns)
    return np.array([column if row % 2 == 0 else columns - 1 - column, -row], float)


def _layers(tree: Tree, size: int) -> Positions:
    """The root in the middle, each level a circle around it; leaves share the angle evenly."""
    children = {
        k: [c for c in tree.out_neighbors(k, size, 0) if c > k] for k in reversed(range(size))
    }
    leaves = dict.fromkeys(range(size), 1)
    for k, below in children.items():
        leaves[k] = sum(leaves[c] for c in below) or 1
    places: Positions = {0: np.zeros(2)}
    spans = {0: (np.pi / 2, np.pi / 2 - 2 * np.pi, 0)}
    for k in range(size):
        start, end, depth = spans[k]
        for child in children[k]:
            stop = start + (end - spans[k][0]) * leaves[child] / leaves[k]
            angle = (start + stop) / 2
            spans[child] = (start, stop, depth + 1)
            places[child] = (depth + 1) * np.array([np.cos(angle), np.sin(angle)])
            start = stop
    return places


def _rounds(topology: Topology, size: int, round: int | None) -> range:
    if round is not None:
        return range(round, round + 1)
    period = topology.period(size)
    return range(ROUNDS // 2 if period is None else min(period, ROUNDS))


def _title(label: str, topology: Topology, size: int, round: int) -> str:
    period = topology.period(size)
    name = label if len(label) <= 34 else f"{label[:33]}…"
    if period == 1:
        return name
    return f"{name}\nround {round}{'' if period is None else f' of {period}'}"


def _draw(axes: Axes, topology: Topology, size: int, round: int, places: Positions) -> None:
    edges = {(i, j) for i in range(size) for j in topology.out_neighbors(i, size, round) if i != j}
    both = sorted((i, j) for i, j in edges if i < j and (j, i) in edges)
    one_way = sorted((i, j) for i, j in edges if (j, i) not in edges)
    dots = 7 if size <= NUMBERED else max(1.5, 28 / math.sqrt(size))
    dots = 11 if size <= 20 else dots
    # Many edges are thin and pale, so that they do not run together.
    weight = min(1.0, (60 / max(len(edges), 1)) ** 0.5)
    width, alpha = 0.3 + 1.0 * weight, 0.2 + 0.8 * weight
    if size > NUMBERED:
        width *= 0.7
    wide = isinstance(topology, Torus)
    lines = [part for i, j in both for part in _lines(places[i], places[j], wide)]
    axes.add_collection(LineCollection(lines, colors=EDGE, linewidths=width, alpha=alpha, zorder=1))
    for i, j in one_way:
        axes.add_patch(
            FancyArrowPatch(
                tuple(places[i]),
                tuple(places[j]),
                arrowstyle="-|>",
                mutation_scale=(3 + 5 * weight) * (1 if size <= NUMBERED else 0.6),
                shrinkA=dots / 2,
                shrinkB=dots / 2,
                color=EDGE,
                lw=width,
                alpha=alpha,
                zorder=1,
            )
        )
    xy = np.array([places[k] for k in range(size)])
    axes.plot(xy[:, 0], xy[:, 1], "o", ms=dots, color=NODE, mec="white", mew=0.6, zorder=2)
    if size <= NUMBERED:
        for k in range(size):
            axes.annotate(
                str(k),
                xy[k],
                color="white",
                fontsize=6 if size <= 20 else 4,
                ha="center",
                va="center_baseline",
                zorder=3,
            )
    reach = max(float(np.ptp(xy, axis=0).max()) / 2, 0.5) * 1.2
    middle = (xy.max(axis=0) + xy.min(axis=0)) / 2
    axes.set_xlim(middle[0] - reach, middle[0] + reach)
    axes.set_ylim(middle[1] - reach, middle[1] + reach)
    axes.set_aspect("equal")


def _lines(
    start: NDArray[np.float64], end: NDArray[np.float64], torus: bool
) -> list[NDArray[np.float64]]:
    """One line, or for an edge round the back of a torus a stub at either end."""
    apart = end - start
    distance = float(np.abs(apart).max())
    on_circle = float(np.abs(start).max()) <= 1 and float(np.abs(end).max()) <= 1
    if not torus or distance < 1.5 or on_circle:
        return [np.array([start, end])]
    stub = 0.45 * apart / distance
    return [np.array([start, start - stub]), np.array([end, end + stub])]
