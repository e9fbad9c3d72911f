"""Sparse linear models: SVM, logistic regression, least squares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..problems.libsvm import SETS, Name, files_of
from ..problems.svmlight import SparseRows, read_svmlight
from .hypergraph import Hypergraph, circulant, pattern_for, random_edges
from .kinds import HINGE, LOGISTIC, SQUARED, LinearCosts
from .problem import Errors, Instance, SparseProblem, at_least

HELD_OUT = 0.2
"""Samples that are drawn beside the training samples, as a fraction of those."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Sparse samples: `values` (entries,) of the features that each edge touches, `labels` (N,)."""

    hypergraph: Hypergraph
    values: NDArray[np.float64]
    labels: NDArray[np.float64]

    def scores(self, x: NDArray[Any]) -> NDArray[Any]:
        """Of every sample, the weighted sum of its values (N,); no sample may be empty."""
        products = self.values * x[self.hypergraph.vertices]
        return np.add.reduceat(products, self.hypergraph.offsets[:-1])


@dataclass(frozen=True, kw_only=True)
class LinearProblem(SparseProblem):
    """A linear model of sparse samples, drawn from a seed or read from LIBSVM's files.

    f(x) = 1/N sum over samples a of [loss(x . z_a; y_a) + l2 sum over u in e_a of x_u^2 / d_u],
    where e_a are the features that sample a has, and d_u is the number of samples with feature u:
    so the penalty of a sample touches only its own features, and all of them make l2 |x|^2.

    A drawn sample has |values| = 1. Its label is that of a hidden linear model, which `noise`
    disturbs; without noise and penalty that model has the least objective, 0.

    Args:
        rows: N, samples to draw.
        features: how many there are.
        nonzeros: features of a sample: their mean, or their number if `rho` is given.
        skew: feature number k is drawn as often as 1 / k^skew; 0 draws all alike.
        rho: have every feature in equally many samples, Delta = nonzeros / features, and every
            sample meet this fraction of them; the nearest that can be had.
        noise: standard deviation of what is added to a score, in those of all scores.
        l2: the penalty's weight.
        seed: of what is drawn, and of the order in which samples of a file are laid out.
        name: read this data set of LIBSVM's page instead.
        data_dir: folder with its files; see `offbeat problems` for where they are looked for.
        train: read this file instead.
        test: with it, a file to measure the test error on.

    Raises:
        ValueError: if a field is out of range, or does not go with the others.
    """

    rows: int = 20_000
    features: int = 47_236
    nonzeros: int = 75
    skew: float = 0.0
    rho: float | None = None
    noise: float = 0.5
    l2: float = 1.0
    seed: int = 0
    name: Name | None = None
    data_dir: str | None = None
    train: str | None = None
    test: str | None = None

    loss: ClassVar[int]
    classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(1, rows=self.rows, features=self.features, nonzeros=self.nonzeros)
        at_least(0, skew=self.skew, noise=self.noise, l2=self.l2)
        if self.nonzeros > self.features:
            raise ValueError(
                f"nonzeros is {self.nonzeros:,}, which is more than the {self.features:,} features"
            )
        if self.rho is not None and not 0 < self.rho <= 1:
            raise ValueError(f"rho is {self.rho:g}; it must be above 0 and at most 1")
        if self.rho is not None and (self.skew or self.rows % self.features):
            wrong = "skew" if self.skew else f"{self.rows:,} rows"
            raise ValueError(
                f"{wrong} with rho: then all features are in equally many samples, without skew "
                f"and with a multiple of the {self.features:,} features as rows"
            )
        if self.name is not None and self.train is not None:
            raise ValueError(f"name {self.name} and train {self.train}: give one of the two")
        if self.test is not None and self.train is None:
            raise ValueError(f"test {self.test} needs a train file to go with")
        if self.data_dir is not None and self.name is None:
            raise ValueError(f"data_dir {self.data_dir} is for data sets by name: give a name")

    def build(self, precision: DTypeLike) -> Instance:
        train, test, optimum = self._samples()
        return linear_instance(
            train, loss=self.loss, l2=self.l2, test=test, optimum=optimum, precision=precision
        )

    def _samples(self) -> tuple[Samples, Samples | None, float | None]:
        if self.name is not None:
            paths = files_of(self.name, self.data_dir)
            return *self._read(paths, SETS[self.name].features), None
        if self.train is not None:
            given = [Path(path).expanduser() for path in (self.train, self.test) if path]
            return *self._read(given, None), None
        drawn = self._draw()
        exact = self.noise == 0 and self.l2 == 0
        return *drawn, 0.0 if exact else None

    def _read(self, paths: list[Path], features: int | None) -> tuple[Samples, Samples | None]:
        parts = list[SparseRows]()
        for path in paths:
            labels = parts[0].labels if parts else None
            parts.append(read_svmlight(path, features, labels, empty=False))
        count = max(part.features for part in parts)
        rng = np.random.default_rng(self.seed)
        read = [_from_file(part, count, rng) for part in parts]
        return read[0], read[1] if len(read) > 1 else None

    def _draw(self) -> tuple[Samples, Samples]:
        rng = np.random.default_rng(self.seed)
        tested = max(1, round(self.rows * HELD_OUT))
        if self.rho is not None:
            pattern = pattern_for(self.nonzeros, self.features, self.rho)
            edges = circulant(self.rows, self.features, pattern)
            held = circulant(tested, self.features, pattern)
        else:
            edges = self._random(self.rows, rng)
            held = self._random(tested, rng)
        hidden = rng.standard_normal(self.features)
        return self._labelled(edges, hidden, rng), self._labelled(held, hidden, rng)

    def _random(self, rows: int, rng: np.random.Generator) -> Hypergraph:
        sizes = np.clip(rng.poisson(self.nonzeros, rows), 1, self.features)
        return random_edges(sizes, self.features, self.skew, rng)

    def _labelled(
        self, edges: Hypergraph, hidden: NDArray[np.float64], rng: np.random.Generator
    ) -> Samples:
        values = rng.standard_exponential(len(edges.vertices))
        lengths = np.sqrt(np.add.reduceat(values**2, edges.offsets[:-1]))
        values /= np.repeat(lengths, np.diff(edges.offsets))
        samples = Samples(hypergraph=edges, values=values, labels=np.empty(0))
        scores = samples.scores(hidden)
        scores += self.noise * scores.std() * rng.standard_normal(len(scores))
        labels = np.where(scores > 0, 1.0, -1.0) if self.classes else scores
        return Samples(hypergraph=edges, values=values, labels=labels)


@dataclass(frozen=True, kw_only=True)
class SparseSVM(LinearProblem):
    """A linear support vector machine: the loss of a sample is max(0, 1 - y x . z).

    Reference: Niu et al., "HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient
    Descent", NIPS 2011, section 2.
    """

    loss: ClassVar[int] = HINGE
    step: ClassVar[float] = 0.3


@dataclass(frozen=True, kw_only=True)
class SparseLogistic(LinearProblem):
    """Logistic regression: the loss of a sample is log(1 + exp(-y x . z)).

    Differences: the penalty is the paper's, of its support vector machine.
    Reference: Niu et al., "HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient
    Descent", NIPS 2011, section 2.
    """

    loss: ClassVar[int] = LOGISTIC
    step: ClassVar[float] = 1.0


@dataclass(frozen=True, kw_only=True)
class SparseLeastSquares(LinearProblem):
    """Least squares: the loss of a sample is (x . z - y)^2 / 2, its label y the hidden score."""

    loss: ClassVar[int] = SQUARED
    step: ClassVar[float] = 0.5
    classes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None or self.train is not None:
            raise ValueError(
                f"{self.name or self.train} holds samples of two classes: they are for SparseSVM "
                "and SparseLogistic"
            )


def linear_instance(
    train: Samples,
    *,
    loss: Literal[0, 1, 2] | int,
    l2: float = 0.0,
    test: Samples | None = None,
    optimum: float | None = None,
    precision: DTypeLike = np.float32,
) -> Instance:
    """The problem of some samples, whose labels are -1 and 1 unless the loss is SQUARED."""
    edges = train.hypergraph
    degrees = edges.degrees()
    shrinkage = 2 * l2 / degrees[edges.vertices]
    costs = LinearCosts(
        offsets=edges.offsets,
        vertices=edges.vertices,
        values=train.values.astype(precision),
        shrinkage=shrinkage.astype(precision),
        labels=train.labels.astype(precision),
        loss=loss,
        penalized=l2 > 0,
    )
    parts = {"train error": train} | ({} if test is None else {"test error": test})
    return Instance(
        costs=costs,
        hypergraph=edges,
        edges=edges.edges,
        vertices=edges.count,
        start=np.zeros(edges.count, precision),
        errors=_errors(parts, loss),
        optimum=optimum,
    )


def _errors(parts: dict[str, Samples], loss: int) -> Errors:
    """The fraction of wrong classes, or the root of the mean square."""

    def error(samples: Samples, x: NDArray[Any]) -> float:
        scores = samples.scores(x)
        if loss == SQUARED:
            return float(np.sqrt(np.mean((scores - samples.labels) ** 2)))
        return float(np.mean((scores > 0) != (samples.labels > 0)))

    return lambda x: {name: error(samples, x) for name, samples in parts.items()}


def _from_file(rows: SparseRows, features: int, rng: np.random.Generator) -> Samples:
    # Files are often sorted by class; samples that lie side by side are taken together.
    order = rng.permutation(rows.matrix.shape[0])
    matrix = rows.matrix[order]
    edges = Hypergraph(
        offsets=matrix.indptr.astype(np.int64),
        vertices=matrix.indices.astype(np.int32),
        count=features,
    )
    return Samples(
        hypergraph=edges, values=matrix.data, labels=2.0 * np.asarray(rows.classes)[order] - 1
    )
