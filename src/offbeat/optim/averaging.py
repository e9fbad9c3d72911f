"""Polyak-Ruppert averaging that begins late, for PyTorch's `AveragedModel`."""

# pyright: reportPrivateImportUsage=false
# torch exports its _foreach functions, which its own optimizers are made of, without naming them.

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Averaging = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]


def polyak(start: int = 0) -> Averaging:
    """The mean of all iterates after the first `start`: a `multi_avg_fn` of `AveragedModel`.

    At step t, from 1:

        mean <- mean + (x - mean) / max(1, t - start)

    So up to step start + 1 the mean is the last iterate.

        averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=polyak(start=1000))
        ...
        optimizer.step()
        averaged.update_parameters(model)

    The statistics of batch norm are those of no average: estimate them anew at the end, by
    `torch.optim.swa_utils.update_bn` or `offbeat.reestimate_statistics`. Averaging from step 0
    keeps the first, bad iterates in the mean for long; `start` should be an early part of the first
    pass. torch.optim.ASGD keeps the same mean, a step later and with its own steps and decay; its
    `t0` is 1,000,000 by default, which in a shorter run is no averaging.

    Args:
        start: t0, in steps; of those up to it nothing is kept.

    Reference: Xu, "Towards optimal one pass large scale learning with averaged stochastic gradient
    descent", 2011; Polyak and Juditsky, "Acceleration of stochastic approximation by averaging",
    SIAM Journal on Control and Optimization 1992.
    """
    if start < 0:
        raise ValueError(f"polyak: start is {start}; it must not be negative")

    def update(means: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        # The first update of an AveragedModel is a copy, and does not come here.
        torch._foreach_lerp_(list(means), list(current), 1 / max(1, int(updates) + 1 - start))

    return update
