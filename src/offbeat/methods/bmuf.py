"""Blockwise model-update filtering: block momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..node import Node
from .local_sgd import LocalSGD


def block_update(
    model: Tensor, start: Tensor, mean: Tensor, change: Tensor, momentum: float, lr: float
) -> tuple[Tensor, Tensor]:
    """D <- eta D + zeta (mean - W_g);  W <- W + D.  Returns (W, D), each (d,), as all tensors.

    `start` is W_g, where the workers began the block, and `mean` that of where they ended it.
    """
    change = momentum * change + lr * (mean - start)
    return model + change, change


@dataclass
class Block:
    model: Tensor | None = None
    """W (d,)."""
    start: Tensor | None = None
    """W_g (d,): where this block began."""
    change: Tensor | None = None
    """D (d,)."""


@dataclass(frozen=True, kw_only=True)
class BMUF(LocalSGD):
    """BMUF: local steps, averaging, and a step of block momentum along the mean change.

    D <- eta D + zeta (mean_i x_i - W_g);  W <- W + D;  all x_i <- W_g

    The next block begins at W_g = W with classical block momentum, and at W_g = W + eta D with
    Nesterov's. eta = 0 and zeta = 1 is Local SGD; classical with zeta = 1 is SlowMo with alpha = 1
    at a constant learning rate, and Nesterov's is DiLoCo's outer step of learning rate zeta.

    Args:
        local_steps: H, steps of a worker to a block.
        block_momentum: eta, from 0 to below 1; None is 1 - 1 / workers.
        block_lr: zeta.
        variant: classical block momentum (CBM) or Nesterov block momentum (NBM).

    Roles: worker. Messages: the collective's own.
    Reference: Chen and Huo, "Scalable training of deep learning machines by incremental block
    training with intra-block parallel optimization and blockwise model-update filtering",
    ICASSP 2016.
    Differences: momentum and other buffers of the inner optimizer stay with their worker. In
    Nesterov's variant fairseq adds D to W_g instead of to W.
    """

    block_momentum: float | None = None
    block_lr: float = 1.0
    variant: Literal["classical", "nesterov"] = "classical"

    outer_steps: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"local_steps": 1_000_000}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.block_momentum is not None and not 0 <= self.block_momentum < 1:
            raise ValueError(
                f"block_momentum is {self.block_momentum:g}; it must be from 0 to below 1"
            )
        if not self.block_lr > 0:
            raise ValueError(f"block_lr is {self.block_lr:g}; it must be positive")

    async def step(self, node: Node) -> None:
        block = node.state(Block)
        if block.model is None:
            block.model = node.parameters.clone()
            block.start = node.parameters.clone()
            block.change = torch.zeros_like(node.parameters)
        await super().step(node)

    async def synchronize(self, node: Node) -> None:
        block, eta = node.state(Block), self.block_momentum
        if eta is None:
            eta = 1 - 1 / len(node.workers)
        mean = await node.all_reduce(node.parameters)
        assert block.model is not None
        assert block.start is not None
        assert block.change is not None
        block.model, block.change = block_update(
            block.model, block.start, mean, block.change, eta, self.block_lr
        )
        ahead = eta if self.variant == "nesterov" else 0.0
        block.start = block.model + ahead * block.change
        node.load(block.start)
