"""LARS as its own paper has it: the gradient is scaled, the learning rate is in the momentum."""

# pyright: reportPrivateImportUsage=false
# torch exports its _foreach functions, which its own optimizers are made of, without naming them.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .layerwise import Adapt, Layerwise, norms, trust_ratios


class LARS(Layerwise):
    """SGD with momentum, and a learning rate of every layer's own.

    For each tensor w with gradient g:

        ratio = eta ||w|| / (||g|| + beta ||w||)
        v <- m v + lr ratio (g + beta w)
        w <- w - v

    eta is `trust_coefficient`, beta `weight_decay`, m `momentum`. The ratio is 1 where that has
    no value or is 0. Tensors that `adapt` leaves out have ratio 1 and beta 0.

    Args:
        params: as every optimizer of torch takes them.
        lr: the global learning rate; the paper decays it to 0 by a polynomial of power 2.
        momentum: of v, in [0, 1).
        weight_decay: inside the ratio.
        trust_coefficient: how far a layer may move at most, as a part of its own norm.
        adapt: which tensors have a ratio and decay. "matrices", those of two dimensions or more,
            leaves out biases and the gains of norms.

    Reference: You, Gitman and Ginsburg, "Large batch training of convolutional networks", 2017,
    algorithm 1.

    Differences: the exclusion of biases and gains, and the ratio 1 for a tensor of zeros, which
    could never leave it otherwise, are common practice and not in the algorithm. timm's Lars
    multiplies v by lr outside, so that a new learning rate at once holds for old gradients too; it
    adds eps, 1e-8, to the ratio's denominator; it has the ratio 1 where the gradient is zero,
    though decay gives one; and it has none where nothing decays.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        adapt: Adapt = "matrices",
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
                "adapt": adapt,
            },
        )

    def _adapted(
        self, parameters: list[Tensor], gradients: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        decay, lr = group["weight_decay"], float(group["lr"])
        sizes = norms(parameters)  # (k,)
        ratios = trust_ratios(group["trust_coefficient"] * sizes, norms(gradients) + decay * sizes)
        velocities = self._buffers("momentum_buffer", parameters)
        directions = torch._foreach_add(gradients, parameters, alpha=decay) if decay else gradients
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_addcmul_(velocities, directions, (lr * ratios).unbind())
        torch._foreach_sub_(parameters, velocities)

    def _plain(
        self, parameters: list[Tensor], gradients: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        velocities = self._buffers("momentum_buffer", parameters)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients, alpha=float(group["lr"]))
        torch._foreach_sub_(parameters, velocities)
