"""Matrix completion: two factors from some entries of their product."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .hypergraph import Hypergraph
from .kinds import FactorCosts
from .problem import Instance, SparseProblem, at_least
from .ratings import Ratings, read_ratings


@dataclass(frozen=True, kw_only=True)
class MatrixCompletion(SparseProblem):
    """Entries of a matrix Z as products of factors L R^T, from a seed or from a file of ratings.

    f(L, R) = 1/|E| sum over entries (u, v) of [(L_u . R_v - Z_uv)^2 + penalty / 2 (|L_u|^2 / n_u +
    |R_v|^2 / n_v)], n_u and n_v being the entries of that row and that column.

    A drawn matrix has factors of standard normal entries over rank^(1/4), so that its entries have
    variance 1; without noise and penalty the least objective is 0.

    Args:
        rows: of the drawn matrix.
        columns: of it.
        entries: how many of its entries are known, all at different places.
        noise: standard deviation of what is added to an entry.
        rank: of the drawn matrix, and of L and R.
        penalty: mu, the weight of the factors' squares.
        held_out: fraction of the entries that the test error is measured on.
        seed: of what is drawn, of L and R at the start, and of what is held out.
        ratings: read this file instead: MovieLens's u.data, ratings.dat or ratings.csv.
        least: the lowest rating that there may be in it.
        most: the highest.

    Raises:
        ValueError: if a field is out of range.

    Reference: Niu et al., "HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient
    Descent", NIPS 2011, section 2.
    """

    rows: int = 2000
    columns: int = 2000
    entries: int = 200_000
    noise: float = 0.1
    rank: int = 10
    penalty: float = 1.0
    held_out: float = 0.1
    seed: int = 0
    ratings: str | None = None
    least: float = 0.5
    most: float = 5.0

    step: ClassVar[float] = 0.05

    def __post_init__(self) -> None:
        at_least(1, rows=self.rows, columns=self.columns, entries=self.entries, rank=self.rank)
        at_least(0, noise=self.noise, penalty=self.penalty)
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out:g}; it must be at least 0 and below 1")
        if self.entries > self.rows * self.columns:
            raise ValueError(
                f"entries is {self.entries:,}, and a matrix of {self.rows:,} by {self.columns:,} "
                f"has {self.rows * self.columns:,}"
            )
        if not self.least < self.most:
            raise ValueError(f"least is {self.least:g}; it must be below most, {self.most:g}")

    def build(self, precision: DTypeLike) -> Instance:
        rng = np.random.default_rng(self.seed)
        if self.ratings is not None:
            known = read_ratings(Path(self.ratings).expanduser(), self.least, self.most)
        else:
            known = self._draw(rng)
        shuffled = rng.permutation(len(known.values))
        held = round(self.held_out * len(shuffled))
        if held == len(shuffled):
            raise ValueError(
                f"held_out is {self.held_out:g}, which leaves none of {held:,} entries to train on"
            )
        test, train = known.take(shuffled[:held]), known.take(shuffled[held:])
        vertices = known.rows + known.columns
        pairs = np.stack([train.row, known.rows + train.column], axis=1).astype(np.int32)
        edges = Hypergraph(
            offsets=np.arange(len(pairs) + 1, dtype=np.int64) * 2,
            vertices=pairs.ravel(),
            count=vertices,
        )
        scale = (max(np.mean(train.values**2), 1e-12) / self.rank) ** 0.25
        factors = scale * rng.standard_normal((vertices, self.rank))
        costs = FactorCosts(
            vertices=edges.vertices,
            ratings=train.values.astype(precision),
            shrinkage=(self.penalty / np.maximum(edges.degrees(), 1)).astype(precision),
            rank=self.rank,
        )
        exact = self.ratings is None and self.noise == 0 and self.penalty == 0
        return Instance(
            costs=costs,
            hypergraph=edges,
            edges=edges.edges,
            vertices=vertices,
            start=factors.astype(precision).ravel(),
            errors=lambda x: {
                name: self._error(part, x)
                for name, part in (("train error", train), ("test error", test))
                if len(part.values)
            },
            optimum=0.0 if exact else None,
        )

    def _draw(self, rng: np.random.Generator) -> Ratings:
        places = rng.choice(self.rows * self.columns, self.entries, replace=False)
        row, column = np.divmod(np.sort(places), self.columns)
        left = rng.standard_normal((self.rows, self.rank)) / self.rank**0.25
        right = rng.standard_normal((self.columns, self.rank)) / self.rank**0.25
        values = (left[row] * right[column]).sum(1)
        values += self.noise * rng.standard_normal(self.entries)
        return Ratings(row=row, column=column, values=values, rows=self.rows, columns=self.columns)

    def _error(self, part: Ratings, x: NDArray[Any]) -> float:
        """The root of the mean square."""
        factors = x.reshape(-1, self.rank)
        predicted = (factors[part.row] * factors[part.rows + part.column]).sum(1)
        return float(np.sqrt(np.mean((predicted - part.values) ** 2)))
