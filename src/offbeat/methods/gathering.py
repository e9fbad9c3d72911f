"""Servers that weigh each gradient by its staleness, and make one step of several."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..node import Node
from .async_sgd import AsyncSGD, Pull, Push
from .staleness import StalenessRule


@dataclass
class Gathered:
    """Of a server: what its next step is to be made of."""

    total: Tensor | None = None
    """sum_i w_i g_i (d,)."""
    weight: float = 0.0
    """sum_i w_i."""
    pushes: int = 0
    taken_at: list[int] = field(default_factory=list[int])
    """The version of each gradient; a push may be of several."""

    def add(self, gradient: Tensor, weight: float, taken_at: list[int]) -> None:
        if self.total is None:
            self.total = gradient * weight
        else:
            self.total.add_(gradient, alpha=weight)
        self.weight += weight
        self.pushes += 1
        self.taken_at += taken_at

    def take(self) -> tuple[Tensor, float, list[int]]:
        """The gradient (d,) of the step, what scales its rate, and its versions; then empty.

        The gradient is sum_i w_i g_i / sum_i w_i and the scale is the mean of w, so that their
        product is the mean of the weighted gradients, and optimizers that do not see the size of
        a gradient (Adam) see the weights.
        """
        assert self.total is not None
        taken = torch.div(self.total, self.weight), self.weight / self.pushes, self.taken_at
        self.total, self.weight, self.pushes, self.taken_at = None, 0.0, 0, []
        return taken


@dataclass(frozen=True, kw_only=True)
class GatheringSGD(AsyncSGD):
    """Asynchronous SGD whose steps are x <- x - lr * (1/c) sum_i w(tau_i) g_i over c gradients.

    What w is and how large c is makes the method. Nobody waits: a worker is answered at once
    with the present parameters, whether its gradient made a step, waits for others or was
    dropped, which is when w = 0. A dropped gradient spends its samples and is not counted in c.
    """

    serial: ClassVar[dict[str, Any] | None] = {"servers": 1}

    @abstractmethod
    def gathers(self, workers: int) -> int:
        """c, pushes to a step."""

    @abstractmethod
    def rule_of(self) -> StalenessRule:
        """w."""

    @property
    def gradients_of_push(self) -> int:
        """How many of a worker's gradients a push is the mean of."""
        return 1

    def staleness_bound(self, workers: int) -> int | None:
        return self.rule_of().bound

    def validate(self, workers: int) -> None:
        super().validate(workers)
        self.rule_of().validate()

    async def serve(self, node: Node) -> None:
        worker, push = await node.recv(Push)
        gathered, workers = node.state(Gathered), len(node.workers)
        weight = self.rule_of().weight(node.version - push.taken_at, workers)
        if weight == 0:
            node.drop(self.gradients_of_push)
        else:
            gathered.add(push.gradient, weight, [push.taken_at] * self.gradients_of_push)
        if gathered.pushes == self.gathers(workers):
            gradient, lr_scale, taken_at = gathered.take()
            node.apply(self.reduced(gradient, len(taken_at)), taken_at, lr_scale)
        node.send(worker, Pull(node.parameters, node.version))

    def reduced(self, mean: Tensor, count: int) -> Tensor:
        """What the step is along, (d,), given the mean of `count` gradients."""
        return mean
