"""The user's own training loop: `optimizer.step()` hands over `.grad` and resumes the worker."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ...method import Method
from .optimizer import DistributedOptimizer as DistributedOptimizer

TIMEOUT = 300.0
"""Seconds to wait for the others before giving up."""


def distribute(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    method: Method,
    scaler: GradScaler | None = None,
    clip_norm: float | None = None,
    seed: int = 0,
    record: str | Path | None = None,
    timeout: float = TIMEOUT,
) -> DistributedOptimizer:
    """Train `model` by a method among the ranks of this job, inside the user's own loop.

    with offbeat.distribute(model, optimizer, method=ADPSGD()) as optimizer:
        for x, y in loader:
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    Ranks find each other as torchrun tells them to (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT);
    without these the process is the only one. All begin at rank 0's parameters, frozen ones and
    buffers too. Servers live on the workers' ranks. After the block the model holds the common
    parameters, and the optimizer remembers what was learnt. With batch norm call
    `offbeat.reestimate_statistics(model, batches)` before the model is evaluated, for its
    statistics are still the rank's own.

    Args:
        model: those of its parameters that require gradients become views of the worker's, or of a
            copy where they can change during a gradient. They are to be read only.
        optimizer: of all of these; it becomes the inner optimizer.
        method: what happens at each step.
        scaler: the GradScaler that will step the optimizer, so that its scale is lowered also
            when a synchronous method skips a step because another rank's gradients overflowed.
        clip_norm: largest norm of a rank's gradient.
        seed: of the method's own random choices.
        record: a folder for journals and gradients, for `replay`.
        timeout: seconds to wait for others before giving up.

    Raises:
        ValueError: what was passed cannot work.
        RunError: models, methods, optimizers or seeds of ranks differ, or the others did not come.
    """
    folder = None if record is None else Path(record)
    return DistributedOptimizer(
        model,
        optimizer,
        method,
        scaler=scaler,
        clip_norm=clip_norm,
        seed=seed,
        record=folder,
        timeout=timeout,
    )
