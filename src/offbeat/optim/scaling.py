"""Learning rates for larger batches, from one that was tuned on a smaller."""

from __future__ import annotations

import math


def linear_scaling(lr: float, *, batch_size: int, base_batch_size: int) -> float:
    """lr * batch_size / base_batch_size: the rule for SGD with momentum, and for LARS.

    Reference: Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017.
    """
    return lr * _growth(batch_size, base_batch_size)


def square_root_scaling(lr: float, *, batch_size: int, base_batch_size: int) -> float:
    """lr * sqrt(batch_size / base_batch_size): the rule for LAMB, and for Adam.

    Reference: You et al., "Large batch optimization for deep learning: training BERT in 76
    minutes", ICLR 2020.
    """
    return lr * math.sqrt(_growth(batch_size, base_batch_size))


def _growth(batch_size: int, base_batch_size: int) -> float:
    if batch_size < 1 or base_batch_size < 1:
        raise ValueError(
            f"batch sizes {batch_size} and {base_batch_size} must both be at least 1 sample"
        )
    return batch_size / base_batch_size
