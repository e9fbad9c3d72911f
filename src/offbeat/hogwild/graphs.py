"""Graphs to be cut: grids of images, and files in DIMACS's format."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..problems.problem import DataError

LARGEST = 2**30 - 1
"""The largest capacity in a file: scipy adds up flows of both directions in 32 bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """An undirected graph with terminals.

    Args:
        vertices: how many there are beside the terminals.
        ways: how many terminals there are.
        ends: of each edge (|E|, 2), the smaller first; (v, v) for an edge from v to a terminal.
        terminals: of each edge (|E|,), that terminal; -1 for an edge between two vertices.
        weights: of each edge (|E|,), positive whole numbers.
    """

    vertices: int
    ways: int
    ends: NDArray[np.int64]
    terminals: NDArray[np.int64]
    weights: NDArray[np.int64]

    def take(self, edges: NDArray[np.int64]) -> Graph:
        """The graph of some of its edges, in that order."""
        return Graph(
            vertices=self.vertices,
            ways=self.ways,
            ends=self.ends[edges],
            terminals=self.terminals[edges],
            weights=self.weights[edges],
        )

    def minimum_cut(self) -> int:
        """The weight of the cheapest cut between two terminals, 1 as source and 0 as sink."""
        # Here, because it takes a moment to import.
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_flow

        sink, source = self.vertices, self.vertices + 1
        ends = self.ends.copy()
        to_terminal = self.terminals >= 0
        ends[to_terminal, 1] = np.where(self.terminals[to_terminal] == 1, source, sink)
        both = np.concatenate([ends, ends[:, ::-1]])
        weights = np.concatenate([self.weights, self.weights]).astype(np.int32)
        size = self.vertices + 2
        capacities = csr_array((weights, (both[:, 0], both[:, 1])), shape=(size, size))
        return int(maximum_flow(capacities, source, sink).flow_value)


def grid(image: NDArray[np.float64], ways: int, capacity: int) -> Graph:
    """The graph of an image (depth, rows, columns) with intensities from 0 to 1.

    Neighbours are joined with weight capacity * exp(-(difference * (ways - 1))^2), rounded; a
    pixel and a terminal, whose intensity is label / (ways - 1), with capacity * max(0, 1 -
    distance * (ways - 1)). Edges of weight 0 are left out, and so there is at least one of each
    pixel: its neighbours' or its nearest terminal's.
    """
    number = np.arange(image.size).reshape(image.shape)
    ends, terminals, weights = list[NDArray[np.int64]](), list[NDArray[np.int64]](), []
    for axis, length in enumerate(image.shape):
        if length == 1:
            continue
        here = np.take(number, range(length - 1), axis).ravel()
        there = np.take(number, range(1, length), axis).ravel()
        apart = (image.ravel()[here] - image.ravel()[there]) * (ways - 1)
        ends.append(np.stack([here, there], axis=1))
        terminals.append(np.full(len(here), -1))
        weights.append(np.rint(capacity * np.exp(-(apart**2))).astype(np.int64))
    inside = np.clip(image.ravel(), 0, 1)
    for label in range(ways):
        distance = np.abs(inside - label / (ways - 1)) * (ways - 1)
        ends.append(np.stack([number.ravel()] * 2, axis=1))
        terminals.append(np.full(image.size, label))
        weights.append(np.rint(capacity * np.maximum(0, 1 - distance)).astype(np.int64))
    weight = np.concatenate(weights)
    kept = weight > 0
    return Graph(
        vertices=image.size,
        ways=ways,
        ends=np.concatenate(ends)[kept],
        terminals=np.concatenate(terminals)[kept],
        weights=weight[kept],
    )


def read_image(path: Path) -> NDArray[np.float64]:
    """A picture's brightness (1, rows, columns), from 0 to 1.

    Raises:
        DataError: if it is none.
    """
    # Here, because it takes a moment to import.
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L"), dtype=np.float64)[None] / 255
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is no picture that can be read") from error


def read_dimacs(path: Path) -> Graph:
    """A graph in DIMACS's format for maximum flow: lines `p max N M`, `n ID s`, `a U V CAPACITY`.

    Each arc counts in both directions; one that goes back beside another has to have the same
    capacity. Capacities are whole numbers.

    Raises:
        DataError: naming the line, if it says something else.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    reader = _Dimacs()
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
    for number, line in enumerate(lines, 1):
        fault = reader.take(line.split())
        if fault:
            raise DataError(f"{path}, line {number}: {fault}")
    fault = reader.lacking()
    if fault:
        raise DataError(f"{path} {fault}")
    graph = reader.graph()
    if not len(graph.weights):
        raise DataError(f"{path} has no arc with a capacity but between the terminals")
    return graph


def _whole(word: str) -> bool:
    """Whether it is a whole number that is not negative; of reasonable length."""
    return word.isascii() and word.isdigit() and len(word) <= 18


class _Dimacs:
    """What has been read so far."""

    def __init__(self) -> None:
        self.vertices = 0
        self.terminals: dict[str, int] = {}
        self.arcs: dict[tuple[int, int], int] = {}

    def take(self, words: list[str]) -> str | None:
        """Take a line; what is wrong with it."""
        match words:
            case [] | ["c", *_]:
                return None
            case ["p", "max", *_] if self.vertices:
                return "there is a line `p max VERTICES ARCS` already"
            case ["p", "max", count, _] if _whole(count) and int(count) > 2:
                self.vertices = int(count)
                return None
            case ["n", name, ("s" | "t") as kind]:
                return self._vertex(name) or self._terminal(int(name), kind)
            case ["a", begin, end, capacity]:
                return self._vertex(begin) or self._vertex(end) or self._arc(begin, end, capacity)
            case _:
                return f"{' '.join(words)[:60]!r} is no line of p max, n, a or c"

    def _vertex(self, name: str) -> str | None:
        if not self.vertices:
            return "the line `p max VERTICES ARCS` has to come first"
        if not _whole(name) or not 1 <= int(name) <= self.vertices:
            return f"there is no vertex {name[:20]}: they are 1 to {self.vertices}"
        return None

    def _terminal(self, vertex: int, kind: str) -> str | None:
        if kind in self.terminals or vertex in self.terminals.values():
            return f"vertex {vertex} as {kind}: there is one s and one t, at two vertices"
        self.terminals[kind] = vertex
        return None

    def _arc(self, begin: str, end: str, capacity: str) -> str | None:
        if not _whole(capacity) or int(capacity) > LARGEST:
            return f"capacity {capacity[:20]} is no whole number from 0 to {LARGEST:,}"
        if begin == end:
            return f"vertex {begin} has an arc to itself"
        low, high = sorted((int(begin), int(end)))
        if self.arcs.setdefault((low, high), int(capacity)) != int(capacity):
            return (
                f"the arc from {begin} to {end} has capacity {capacity}, and one between the two "
                f"had {self.arcs[low, high]}: cuts are of undirected graphs"
            )
        return None

    def lacking(self) -> str | None:
        if not self.vertices:
            return "has no line `p max VERTICES ARCS`"
        if len(self.terminals) < 2:
            return f"has no line `n ID {'t' if 's' in self.terminals else 's'}`"
        touched = set(itertools.chain.from_iterable(self.arcs))
        alone = next((v for v in range(1, self.vertices + 1) if v not in touched), None)
        if alone is not None:
            return f"has no arc of vertex {alone}"
        return None

    def graph(self) -> Graph:
        source, sink = self.terminals["s"], self.terminals["t"]
        label = {sink: 0, source: 1}
        rest = [v for v in range(1, self.vertices + 1) if v not in label]
        place = {vertex: k for k, vertex in enumerate(rest)}
        ends, terminals, weights = [], [], []
        for (low, high), weight in self.arcs.items():
            # Between the terminals there is nothing to be chosen.
            if not weight or (low in label and high in label):
                continue
            inner = [place[v] for v in (low, high) if v in place]
            ends.append((inner[0], inner[-1]))
            terminals.append(next((label[v] for v in (low, high) if v in label), -1))
            weights.append(weight)
        return Graph(
            vertices=len(rest),
            ways=2,
            ends=np.array(ends, np.int64).reshape(-1, 2),
            terminals=np.array(terminals, np.int64),
            weights=np.array(weights, np.int64),
        )
