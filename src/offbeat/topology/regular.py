"""Static graphs that a formula gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from .base import Topology


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
class DirectedRing(Topology):
    """Directed ring: i sends to i + 1 mod n."""

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return ((rank + 1) % size,) if size > 1 else ()

    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return ((rank - 1) % size,) if size > 1 else ()


@dataclass(frozen=True, kw_only=True)
class Line(Topology):
    """A ring that is cut between the last worker and the first."""

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return tuple(peer for peer in (rank - 1, rank + 1) if 0 <= peer < size)

    in_neighbors = out_neighbors


@dataclass(frozen=True, kw_only=True)
class Tree(Topology):
    """A full tree, filled level by level: worker i is the parent of b i + 1 to b i + b.

    Args:
        branching: b, children of a worker.

    Raises ValueError if `branching` is below 1.
    """

    branching: int = 2

    def __post_init__(self) -> None:
        if self.branching < 1:
            raise ValueError(f"branching is {self.branching}: give an integer >= 1")

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        parent = ((rank - 1) // self.branching,) if rank else ()
        first = self.branching * rank + 1
        return (*parent, *range(first, min(first + self.branching, size)))

    in_neighbors = out_neighbors


@dataclass(frozen=True, kw_only=True)
class Torus(Topology):
    """Rows and columns that each close to a ring; worker i is in row i // columns.

    Args:
        rows: by default as many as make it most square, so a prime number of workers is a ring.

    Raises ValueError if `rows` is below 1.
    """

    rows: int | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows is {self.rows}: give an integer >= 1")

    def shape(self, size: int) -> tuple[int, int]:
        """(rows, columns)."""
        rows = self.rows or _squarest(size)
        return rows, size // rows

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        rows, columns = self.shape(size)
        row, column = divmod(rank, columns)
        peers = (
            (row - 1) % rows * columns + column,
            row * columns + (column - 1) % columns,
            row * columns + (column + 1) % columns,
            (row + 1) % rows * columns + column,
        )
        # With two rows the one above is the one below.
        return tuple(peer for peer in dict.fromkeys(peers) if peer != rank)

    in_neighbors = out_neighbors

    def require_size(self, size: int) -> None:
        if self.rows and size % self.rows:
            below = size - size % self.rows
            near = [multiple for multiple in (below, below + self.rows) if multiple]
            raise ValueError(
                f"Torus(rows={self.rows}) needs a multiple of {self.rows} workers, not {size}: "
                f"take {' or '.join(map(str, near))}"
            )


@dataclass(frozen=True, kw_only=True)
class Hypercube(Topology):
    """The d-cube of n = 2^d workers: neighbours are the ranks that differ in one bit."""

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return tuple(rank ^ (1 << k) for k in range(size.bit_length() - 1))

    in_neighbors = out_neighbors

    def require_size(self, size: int) -> None:
        if size & (size - 1):
            below = 1 << (size.bit_length() - 1)
            raise ValueError(
                f"Hypercube needs a power of two of workers, not {size}: "
                f"take {below} or {2 * below}"
            )


# The n tuples of a complete graph then share their n integers.
@lru_cache(maxsize=16)
def _ranks(size: int) -> tuple[int, ...]:
    return tuple(range(size))


@lru_cache(maxsize=64)
def _squarest(size: int) -> int:
    """The largest divisor of `size` that is at most its square root."""
    return next(rows for rows in range(math.isqrt(size), 0, -1) if size % rows == 0)
