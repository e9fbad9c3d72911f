"""LAMB: Adam's step, each layer's as long as the layer's own norm."""

# pyright: reportPrivateImportUsage=false
# torch exports its _foreach functions, which its own optimizers are made of, without naming them.

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .layerwise import Adapt, Layerwise, bounded, norms, trust_ratios


class LAMB(Layerwise):
    """Adam's direction with decay, scaled to the norm of each layer.

    For each tensor x with gradient g, at its step number t:

        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        r = m' / (sqrt(v') + eps)
        x <- x - lr phi(||x||) / ||r + lambda x|| (r + lambda x)

    m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t), or m and v without `bias_correction`.
    lambda is `weight_decay`; phi(z) = z, or min(max(z, lower), upper) with `norm_bounds`. The ratio
    is 1 where either norm is 0. Tensors that `adapt` leaves out have ratio 1 and lambda 0: Adam's
    step.

    It needs a warm-up: the schedule of the paper is `offbeat.schedule.Polynomial`, its rule for
    larger batches `square_root_scaling`.

    Args:
        params: as every optimizer of torch takes them.
        lr: the learning rate: how far a layer moves, as a part of its own norm.
        betas: of m and v, in [0, 1).
        eps: added to the root.
        weight_decay: inside the ratio.
        bias_correction: the published paper has it; its preprint of mid-2019 has not.
        norm_bounds: lower and upper bound of phi; the identity if not given.
        adapt: which tensors have a ratio and decay. "matrices", those of two dimensions or more,
            leaves out biases and the gains of norms.

    Reference: You et al., "Large batch optimization for deep learning: training BERT in 76
    minutes", ICLR 2020, algorithm 2.

    Differences: the exclusion of biases and gains, and the ratio 1 for zero norms, are common
    practice and not in the algorithm. timm's Lamb first clips the gradient of all tensors together
    to norm 1, has no phi, and has no ratio where nothing decays.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        norm_bounds: tuple[float, float] | None = None,
        adapt: Adapt = "matrices",
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "bias_correction": bias_correction,
                "norm_bounds": norm_bounds,
                "adapt": adapt,
            },
        )

    def _adapted(
        self, parameters: list[Tensor], gradients: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        means, roots, factors = self._moments(parameters, gradients, group)
        directions = list(torch._foreach_mul(parameters, group["weight_decay"]))
        torch._foreach_addcdiv_(directions, means, roots, factors)
        phi = bounded(norms(parameters), group["norm_bounds"])  # (k,)
        ratios = trust_ratios(phi, norms(directions))
        torch._foreach_addcmul_(parameters, directions, (-float(group["lr"]) * ratios).unbind())

    def _plain(
        self, parameters: list[Tensor], gradients: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        means, roots, factors = self._moments(parameters, gradients, group)
        lr = float(group["lr"])
        torch._foreach_addcdiv_(parameters, means, roots, [-lr * factor for factor in factors])

    def _moments(
        self, parameters: list[Tensor], gradients: list[Tensor], group: Mapping[str, Any]
    ) -> tuple[list[Tensor], list[Tensor], list[float]]:
        """Of each tensor m, a denominator and a factor, such that r = factor m / denominator.

        m' / (sqrt(v') + eps) = sqrt(c2) / c1 m / (sqrt(v) + sqrt(c2) eps), c = 1 - beta^t, saves
        two passes over the tensors.
        """
        beta1, beta2 = group["betas"]
        means = self._buffers("exp_avg", parameters)
        squares = self._buffers("exp_avg_sq", parameters)
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        factors: list[float] = []
        shifts: list[float] = []
        for parameter in parameters:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            correction1, correction2 = 1.0, 1.0
            if group["bias_correction"]:
                correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
            factors.append(math.sqrt(correction2) / correction1)
            shifts.append(math.sqrt(correction2) * group["eps"])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, shifts)
        return means, list(roots), factors
