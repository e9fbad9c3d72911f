"""Asynchronous averaged SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..method import Holder
from ..node import Node
from .async_sgd import AsyncSGD


@dataclass
class Average:
    """Of a server: the mean of what it has held."""

    mean: Tensor | None = None
    """(d,); before the first step there is none."""


@dataclass(frozen=True, kw_only=True)
class AveragedAsyncSGD(AsyncSGD):
    """Asynchronous averaged SGD: the model is the mean of what the server has held since step t_0.

    x <- x - lr * g(x_{k-tau});  mean <- mean + (x - mean) / max(1, k - t_0)

    Workers are sent x, and so compute what they do in asynchronous SGD; the mean goes nowhere. It
    needs one pass over the data where x needs several, if the rate falls more slowly than 1/t, as
    `XuSchedule` does, and if t_0 is an early part of the pass.

    Args:
        start: t_0, in steps of the server; up to it the mean is x.

    Roles: worker, server. Messages: Push, Pull.
    Reference: You and Xu, "Improving training time of deep neural network with asynchronous
    averaged stochastic gradient descent", ISCSLP 2014; Xu, "Towards optimal one pass large scale
    learning with averaged stochastic gradient descent", 2011.
    Differences: the mean is Xu's, which begins at any step; several servers have one for each part.
    """

    start: int = 50

    serial: ClassVar[dict[str, Any] | None] = {"servers": 1, "start": 1_000_000}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.start < 0:
            raise ValueError(f"start is {self.start}; it must not be negative")

    async def serve(self, node: Node) -> None:
        await super().serve(node)
        average = node.state(Average)
        if average.mean is None:
            average.mean = node.parameters.clone()
        average.mean.lerp_(node.parameters, 1 / max(1, node.version - self.start))

    def part_of_model(self, server: Holder) -> Tensor:
        mean = server.state(Average).mean
        return server.parameters if mean is None else mean
