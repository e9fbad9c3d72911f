"""A small dense network, as the case that Hogwild! was not made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..problems.digits import read_digits
from .kinds import PerceptronCosts
from .problem import Instance, SparseProblem, at_least

TESTED = 0.2


@dataclass(frozen=True, kw_only=True)
class Perceptron(SparseProblem):
    """A network with one hidden layer of ReLUs on scikit-learn's digits: 8 by 8 pixels, 10 classes.

    f(x) = the mean cross-entropy. Every sample touches every parameter: Omega = d, Delta = rho = 1.

    Args:
        hidden: units of the hidden layer.
        seed: of the parameters at the start, and of which fifth of the samples is for testing.

    Raises:
        ValueError: if a field is out of range.
    """

    hidden: int = 16
    seed: int = 0

    step: ClassVar[float] = 0.05

    def __post_init__(self) -> None:
        at_least(1, hidden=self.hidden)

    def build(self, precision: DTypeLike) -> Instance:
        pixels, labels = read_digits()
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(len(labels))
        tested = round(TESTED * len(order))
        inputs = pixels / 16
        test, train = order[:tested], order[tested:]
        return perceptron_instance(
            inputs[train],
            labels[train],
            hidden=self.hidden,
            rng=rng,
            test=(inputs[test], labels[test]),
            precision=precision,
        )


def perceptron_instance(
    inputs: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    hidden: int,
    rng: np.random.Generator,
    test: tuple[NDArray[np.float64], NDArray[np.int64]] | None = None,
    precision: DTypeLike = np.float32,
) -> Instance:
    """The problem of some inputs (N, features) and labels (N,) from 0."""
    features, classes = inputs.shape[1], int(labels.max()) + 1
    first = rng.uniform(-1, 1, (hidden, features)) / np.sqrt(features)
    second = rng.uniform(-1, 1, (classes, hidden)) / np.sqrt(hidden)
    start = np.concatenate([first.ravel(), np.zeros(hidden), second.ravel(), np.zeros(classes)])
    costs = PerceptronCosts(
        inputs=np.ascontiguousarray(inputs, precision),
        labels=labels,
        vertices=np.arange(len(start), dtype=np.int32),
        hidden=hidden,
        classes=classes,
    )
    parts = {"train error": (inputs, labels)} | ({} if test is None else {"test error": test})

    def wrong(x: NDArray[Any], images: NDArray[Any], wanted: NDArray[np.int64]) -> float:
        split = hidden * features
        before = images @ x[:split].reshape(hidden, features).T + x[split : split + hidden]
        outer = x[split + hidden :]
        weights = outer[: classes * hidden].reshape(classes, hidden)
        scores = np.maximum(before, 0) @ weights.T + outer[classes * hidden :]
        return float(np.mean(scores.argmax(1) != wanted))

    return Instance(
        costs=costs,
        hypergraph=None,
        edges=len(labels),
        vertices=len(start),
        start=start.astype(precision),
        errors=lambda x: {name: wrong(x, *part) for name, part in parts.items()},
    )
