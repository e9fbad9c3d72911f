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

    They are what a simulation of 96 rounds, with equal workers, sends beyond one of 64: how a
    method begins and ends does not count. The model is `LAYERS` matrices of `side` rows and
    columns.
    """
    dimension = LAYERS * side**2
    problem = _Matrices(side=side, dimension=dimension, samples=16 * workers)

    def totals(rounds: int) -> tuple[int, int]:
        run = simulated(
            small_experiment(
                method, workers=workers, steps=rounds, problem=problem, evaluator="auto"
            )
        )
        return run.metrics[-1].bytes, len(run.trace.gradients)

    (few, before), (many, after) = totals(BEGINNING), totals(BEGINNING + ROUNDS)
    return (many - few) / ((after - before) * 4 * dimension)
