"""Small experiments to check methods on."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..cluster import Cluster
from ..experiment import Budget, Experiment
from ..method import Method
from ..problems import LeastSquares
from ..runs import Run
from ..runtime.simulated import Simulation


@dataclass(frozen=True, kw_only=True)
class Quadratic(LeastSquares):
    """Least squares without noise, its parameters in several tensors.

    Args:
        tensors: how many; between them they have `dimension` numbers.
    """

    dimension: int = 8
    samples: int = 64
    condition: float = 4.0
    batch_size: int = 4
    double: bool = True
    tensors: int = 4

    def model(self) -> nn.Module:
        return _LinearInParts(self.dimension, self.tensors, self.double)


class _LinearInParts(nn.Module):
    """Inputs (N, d) times the concatenation (d,) of all parameters: outputs (N,)."""

    def __init__(self, dimension: int, tensors: int, double: bool) -> None:
        super().__init__()
        start = torch.zeros(dimension, dtype=torch.float64 if double else torch.float32)
        self.parts = nn.ParameterList(nn.Parameter(p) for p in start.tensor_split(tensors))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ torch.cat(list(self.parts))


def small_experiment(
    method: Method,
    *,
    workers: int = 4,
    steps: int = 50,
    lr: float = 0.05,
    momentum: float = 0.0,
    **settings: Any,
) -> Experiment:
    """`steps` gradients a worker on `Quadratic`; `settings` are the experiment's own."""
    problem = settings.setdefault("problem", Quadratic())
    defaults: dict[str, Any] = {
        "cluster": Cluster(workers=workers),
        "optimizer": functools.partial(torch.optim.SGD, lr=lr, momentum=momentum),
        "budget": Budget(samples=steps * workers * problem.batch_size),
        "evaluator": "serial",
    }
    return Experiment(method=method, **(defaults | settings))


def simulated(experiment: Experiment) -> Run:
    """The run of an experiment that has to end well."""
    run = Simulation(experiment).run()
    assert run.error is None, run.error
    return run


def fingerprint(run: Run) -> str:
    """SHA-256 of all that happened in a run and of the model that came out of it."""
    digest = hashlib.sha256(run.trace.hash().encode())
    digest.update(run.vector.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
