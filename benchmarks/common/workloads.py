"""The models that are trained, on random data, and a plain step of each."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offbeat.models.lenet import lenet5
from offbeat.problems import Data, Problem, Split

Optimizer = functools.partial(torch.optim.SGD, lr=0.001, fused=True)
"""Of every contestant: one rate, and PyTorch's fused step."""


def mlp(width: int = 2048) -> nn.Module:
    """784-width-width-10 with ReLUs: 5.8 million parameters."""
    return nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def small_mlp() -> nn.Module:
    """64-32-10 with a ReLU: 2,410 parameters."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def convnet() -> nn.Module:
    """The network of Ray's parameter-server example: 1,960 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.MaxPool2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10)
    )


def matrix(side: int = 5000) -> nn.Module:
    """One matrix of 25 million parameters, 100 MB."""
    return nn.Linear(side, side, bias=False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (784,)),
    "lenet5": (lenet5, (1, 28, 28)),
    "small_mlp": (small_mlp, (64,)),
    "convnet": (convnet, (1, 28, 28)),
    "matrix": (matrix, (5000,)),
    "small_matrix": (functools.partial(matrix, 500), (500,)),
}
"""By name: what makes the model, and the shape of one input."""


@dataclass(frozen=True, kw_only=True)
class RandomData(Problem):
    """Inputs of standard normal numbers in ten random classes.

    Args:
        network: a name in `NETWORKS`.
        batch_size: samples of one minibatch.
        samples: to train on.
    """

    network: str
    batch_size: int = 32
    samples: int = 1024

    def model(self) -> nn.Module:
        return NETWORKS[self.network][0]()

    def data(self) -> Data:
        return _draw(NETWORKS[self.network][1], self.samples)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def evaluate(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"loss": self.loss(outputs, targets).item()}


@lru_cache
def _draw(shape: tuple[int, ...], samples: int) -> Data:
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Split:
        inputs = torch.randn(size, *shape, generator=generator)
        return Split(inputs, torch.randint(10, (size,), generator=generator))

    return Data(train=split(samples), validation=split(16), test=split(16))


def minibatches(problem: RandomData, rank: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Draws one minibatch at a call, as a plain loop over tensors in memory does."""
    train = problem.data().train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(rank))
    batches = itertools.cycle(order.split(problem.batch_size))

    def draw() -> tuple[Tensor, Tensor]:
        chosen = next(batches)
        return train.inputs[chosen], train.targets[chosen]

    return draw


def plain_step(
    problem: RandomData, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int
) -> Callable[[], None]:
    """The body of a plain training loop: its own minibatches for every rank."""
    draw = minibatches(problem, rank)

    def step() -> None:
        inputs, targets = draw()
        loss = problem.loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
