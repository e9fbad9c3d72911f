"""Parameter groups with and without weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def is_vector(name: str, parameter: Tensor) -> bool:
    """Whether it has at most one dimension: a bias, or a gain of batch or layer norm."""
    return parameter.ndim <= 1


def without_decay(
    named_parameters: Iterable[tuple[str, Tensor]],
    leave_out: Callable[[str, Tensor], bool] = is_vector,
) -> list[dict[str, Any]]:
    """Parameter groups, for any optimizer: what decays, and what neither decays nor adapts.

    `LARS`, `LAMB` and `NormalizedMomentumLARS` leave vectors out anyway; this is for other
    optimizers, and for other choices:

        AdamW(without_decay(model.named_parameters()), lr=1e-3)
        LAMB(without_decay(model.named_parameters(), lambda name, p: "embedding" in name))

    Args:
        named_parameters: `module.named_parameters()`.
        leave_out: whether to leave out the tensor of that name.
    """
    decayed: list[Tensor] = []
    left_out: list[Tensor] = []
    for name, parameter in named_parameters:
        (left_out if leave_out(name, parameter) else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": left_out, "weight_decay": 0.0, "adapt": "none"},
    ]
    return [group for group in groups if group["params"]]
