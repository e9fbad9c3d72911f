"""LARS as the paper on LAMB has it: the momentum is normalized, and there is no eta."""

# pyright: reportPrivateImportUsage=false
# torch exports its _foreach functions, which its own optimizers are made of, without naming them.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .layerwise import Adapt, Layerwise, bounded, norms, trust_ratios


class NormalizedMomentumLARS(Layerwise):
    """Steps along the momentum, each layer's as long as the layer's own norm.

    For each tensor x with gradient g:

        m <- beta m + (1 - beta) (g + lambda x)
        x <- x - lr phi(||x||) / ||m|| m

    beta is `momentum`, lambda `weight_decay`; phi(z) = z, or min(max(z, lower), upper) with
    `norm_bounds`. The ratio is 1 where phi(||x||) or ||m|| is 0. Tensors that `adapt` leaves out
    have ratio 1 and lambda 0. It is another algorithm than `LARS`: a step's length does not depend
    on the gradient's, and there is no factor 0.001, so its learning rates are smaller.

    Args:
        params: as every optimizer of torch takes them.
        lr: the learning rate: how far a layer moves, as a part of its own norm.
        momentum: of m, in [0, 1).
        weight_decay: inside the momentum.
        norm_bounds: lower and upper bound of phi; the identity if not given.
        adapt: which tensors have a ratio and decay; see `LARS`.

    Reference: You et al., "Large batch optimization for deep learning: training BERT in 76
    minutes", ICLR 2020, algorithm 1.

    Differences: the exclusion of biases and gains, and the ratio 1 for zero norms, are common
    practice and not in the algorithm.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        norm_bounds: tuple[float, float] | None = None,
        adapt: Adapt = "matrices",
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "norm_bounds": norm_bounds,
                "adapt": adapt,
            },
        )

    def _adapted(
        self, parameters: list[Tensor], gradients: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        decay, lr = group["weight_decay"], float(group["lr"])
        momenta = self._buffers("momentum_buffer", parameters)
        directions = torch._foreach_add(gradients, parameters, alpha=decay) if decay else gradients
        torch._foreach_lerp_(momenta, directions, 1 - group["momentum"])
        phi = bounded(norms(parameters), group["norm_bounds"])  # (k,)
        ratios = trust_ratios(phi, norms(momenta))
        torch._foreach_addcmul_(parameters, momenta, (-lr * ratios).unbind())

    def _plain(
        self, parameters: list[Tensor], gradients: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        momenta = self._buffers("momentum_buffer", parameters)
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        torch._foreach_add_(parameters, momenta, alpha=-float(group["lr"]))
