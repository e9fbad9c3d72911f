"""DiLoCo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..node import Node
from ..stepping import OuterOptimizer
from .local_sgd import LocalSGD


def nesterov(node: Node, name: str, start: Tensor, lr: float, momentum: float) -> OuterOptimizer:
    """m <- mu m + Delta;  theta <- theta - lr (Delta + mu m), all (d,); plain SGD if mu is 0."""
    return node.outer(name, start, torch.optim.SGD, lr=lr, momentum=momentum, nesterov=momentum > 0)


def check_outer(lr: float, momentum: float) -> None:
    """Raise ValueError, in one line, for settings that no outer optimizer of momentum can have."""
    if not lr > 0:
        raise ValueError(f"outer_lr is {lr:g}; it must be positive")
    if not 0 <= momentum < 1:
        raise ValueError(f"outer_momentum is {momentum:g}; it must be from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class DiLoCo(LocalSGD):
    """DiLoCo: local steps; every H of them an outer Nesterov step on the mean change.

    Delta = mean_i (theta - x_i);  m <- mu m + Delta;  theta <- theta - lr (Delta + mu m)

    theta is where all workers begin their local steps. lr = 1 and mu = 0 is Local SGD, and with
    H = 1 data-parallel SGD.

    Args:
        local_steps: H.
        outer_lr: of the outer Nesterov SGD.
        outer_momentum: mu of the outer Nesterov SGD.

    Roles: worker. Messages: the collective's own.
    Reference: Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language
    Models", 2023, algorithm 1.
    Differences: the paper's inner optimizer is AdamW and its H 500; here both are settings. The
    inner optimizer's buffers stay with their worker, as in the paper, and are not reset.
    """

    local_steps: int = 16
    outer_lr: float = 0.7
    outer_momentum: float = 0.9

    outer_steps: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"local_steps": 1_000_000}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        check_outer(self.outer_lr, self.outer_momentum)

    async def step(self, node: Node) -> None:
        self._outer(node)  # Made of the parameters before the first step.
        await super().step(node)

    async def synchronize(self, node: Node) -> None:
        outer = self._outer(node)
        change = outer.parameters - node.parameters
        node.load(outer.step(await node.all_reduce(change)))

    def _outer(self, node: Node) -> OuterOptimizer:
        return nesterov(node, "theta", node.parameters, self.outer_lr, self.outer_momentum)
