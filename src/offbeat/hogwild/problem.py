"""What every problem with separable costs offers."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .costs import objective as mean_cost
from .hypergraph import Hypergraph, Sparsity
from .kinds import Costs

Errors = Callable[[NDArray[Any]], dict[str, float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """A problem with its data.

    Args:
        costs: as the compiled functions take them.
        hypergraph: which edge touches which vertex; None where each touches all.
        edges: |E|.
        vertices: how many there are.
        start: where training begins (d,); d is the number of vertices times their width.
        errors: what else than the objective is measured, such as "train error", by its name.
        optimum: the least value of the objective, where it is known.
    """

    costs: Costs
    hypergraph: Hypergraph | None
    edges: int
    vertices: int
    start: NDArray[Any]
    errors: Errors
    optimum: float | None = None

    def objective(self, x: NDArray[Any]) -> float:
        """f(x), the mean over edges, at x (d,)."""
        return float(mean_cost(self.costs, self.edges, x))

    @functools.cached_property
    def sparsity(self) -> Sparsity:
        """Omega, Delta and rho, measured."""
        if self.hypergraph is None:
            return Sparsity(omega=self.vertices, delta=1.0, rho=1.0)
        return self.hypergraph.sparsity()

    def sizes(self) -> NDArray[np.int64]:
        """Of each edge, how many vertices it touches (|E|,)."""
        if self.hypergraph is None:
            return np.full(self.edges, self.vertices)
        return np.diff(self.hypergraph.offsets)

    @functools.cached_property
    def most(self) -> int:
        """Coordinates of the edge that touches most."""
        return int(self.sizes().max()) * self.width

    @property
    def width(self) -> int:
        """Coordinates of a vertex."""
        return len(self.start) // self.vertices


class SparseProblem(ABC):
    """A sum of costs that touch few coordinates each. Subclasses are frozen dataclasses."""

    step: ClassVar[float]
    """A step that does well with the default settings."""

    @abstractmethod
    def build(self, precision: DTypeLike) -> Instance:
        """Draw or read the data, as floats of that precision.

        Raises:
            ValueError: in one line, if the data is missing or damaged.
        """

    def instance(self, precision: DTypeLike = np.float32) -> Instance:
        """The problem with its data; equal problems share the last few."""
        return _built(self, np.dtype(precision))


@functools.lru_cache(maxsize=4)
def _built(problem: SparseProblem, precision: np.dtype[Any]) -> Instance:
    return problem.build(precision)


def at_least(least: float, **values: float) -> None:
    """Refuse settings below `least`, by their names."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} is {value:g}; it must be at least {least:g}")
