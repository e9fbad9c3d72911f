"""What a rank of plain PyTorch runs: local steps, averaged by torch.distributed's own averagers."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.hierarchical_model_averager import (
    HierarchicalModelAverager,
)


def main(out: Path, inputs: torch.Tensor, targets: torch.Tensor, plans: list[dict[int, int]]):
    """Least squares of minibatches (workers, steps, b, d) and (workers, steps, b), for each plan.

    A plan has, by period, the workers of the groups that average then.
    """
    dist.init_process_group("gloo")
    rank, ends = dist.get_rank(), []
    for plan in plans:
        periods = OrderedDict(plan)
        if len(plan) == 1:
            averager = PeriodicModelAverager(period=next(iter(plan)))
        else:
            averager = HierarchicalModelAverager(periods)
        averager.step = 1  # It would begin at 0, and average after the first step too.
        x = torch.nn.Parameter(torch.zeros(inputs.shape[-1], dtype=inputs.dtype))
        for A, b in zip(inputs[rank], targets[rank], strict=True):
            x.grad = A.T @ (A @ x.data - b) / len(b)  # Without one x would be left out.
            x.data -= 0.05 * x.grad
            averager.average_parameters([x])
        ends.append(x.data)
    torch.save(ends, out / f"{rank}.pt")
    dist.destroy_process_group()
