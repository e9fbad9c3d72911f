"""Batch norm: running statistics are never exchanged, but estimated anew for each judged model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

SAMPLES = 2048
"""Training samples from which statistics are estimated, or all if there are fewer."""
AT_ONCE = 512
"""Samples of one minibatch of the estimate, at most."""


def reestimate_statistics(model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
    """Estimate batch norm's running statistics of `model` anew, for the parameters it has now.

    They become the mean over `batches` of each minibatch's own statistics; what they were before
    is forgotten. Other layers stay as they are, and so does the model's mode. Where there is no
    batch norm with running statistics, nothing happens.

    Args:
        batches: inputs (b, ...) of training samples, or pairs that begin with them, such as a
            DataLoader gives.
    """
    update_bn(batches, model)


def estimation_batches(inputs: Tensor) -> list[Tensor]:
    """The minibatches of the training inputs (N, ...) from which a runtime estimates statistics.

    Samples evenly spaced over all, dealt out in turn to minibatches of about equal size: data in
    the order of their classes give no minibatch of one class.
    """
    count = min(SAMPLES, len(inputs))
    chosen = torch.arange(count, device=inputs.device) * len(inputs) // count
    parts = math.ceil(count / AT_ONCE)
    return [inputs[chosen[part::parts]] for part in range(parts)]


def has_running_statistics(module: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())


def require_reestimable(module: nn.Module) -> None:
    """Refuse layers whose running statistics `reestimate_statistics` could not make right.

    Raises:
        ValueError: in one line that names the layer, and what to do.
    """
    for name, layer in module.named_modules():
        if not getattr(layer, "track_running_stats", False):
            continue
        what = f"{name or 'the model'} ({type(layer).__name__})"
        if not isinstance(layer, _BatchNorm):
            raise ValueError(
                f"{what} keeps running statistics, which only batch norm may; give it "
                "track_running_stats=False"
            )
        if not layer.training:
            raise ValueError(
                f"{what} is frozen in eval mode, but its statistics are estimated anew at each "
                "evaluation; replace a frozen layer by its scale and shift"
            )


def own_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all buffers but batch norm's statistics, by name."""
    return {
        f"{prefix}.{name}".lstrip("."): buffer.clone()
        for prefix, layer in module.named_modules()
        if not isinstance(layer, _BatchNorm)
        for name, buffer in layer.named_buffers(recurse=False)
    }
