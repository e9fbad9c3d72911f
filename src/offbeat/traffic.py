"""Traffic: how much a method sends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .method import Method
from .problems import LeastSquares
from .testing import simulated, small_experiment

BEGINNING = 64
"""Rounds that do not count: a method may communicate otherwise while it begins."""
ROUNDS = 32
"""Rounds that do; a multiple of the periods at which methods commonly communicate."""
END = 4
"""Rounds after those, for how a method ends does not count either."""
LAYERS = 4


@dataclass(frozen=True, kw_only=True)
class _Matrices(LeastSquares):
    """Least squares whose parameters are matrices, for there are methods that compress these only.

    Args:
        side: of each of the `LAYERS` square matrices, that together are the parameters.
    """

    side: int
    batch_size: int = 4
    double: bool = False

    def model(self) -> nn.Module:
        return _Linear(self.side)


class _Linear(nn.Module):
    """Inputs (N, d) times all parameters (d,): outputs (N,)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList(torch.zeros(side, side) for _ in range(LAYERS))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ torch.cat([layer.reshape(-1) for layer in self.layers])


def models_sent(method: Method, workers: int, *, side: int = 32) -> float:
    """Bytes that all nodes together send for each gradient, in sizes of the model.

    They are what a simulation with equal workers sends between its 64th and its 96th round: how a
    method begins and ends does not count. The model is `LAYERS` matrices of `side` rows and
    columns.
    """
    dimension = LAYERS * side**2
    problem = _Matrices(side=side, dimension=dimension, samples=16 * workers)
    experiment = small_experiment(
        method,
        workers=workers,
        steps=BEGINNING + ROUNDS + END,
        problem=problem,
        evaluator="auto",
        evaluate_every=ROUNDS * workers * problem.batch_size,
    )
    rows = simulated(experiment).metrics
    samples = [rounds * workers * problem.batch_size for rounds in (BEGINNING, BEGINNING + ROUNDS)]
    before, after = (next(row for row in rows if row.samples >= least) for least in samples)
    gradients = (after.samples - before.samples) / problem.batch_size
    return (after.bytes - before.bytes) / (gradients * 4 * dimension)
