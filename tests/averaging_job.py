"""What a rank of plain PyTorch runs: DistributedDataParallel whose gradients stay local after some
steps, and parameters that torch.distributed's own averagers average."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.hierarchical_model_averager import (
    HierarchicalModelAverager,
)
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Plan:
    """Who averages when: by period, the workers of the groups that average parameters then."""

    periods: dict[int, int]
    switch: int = 0
    """Steps before, in which gradients are averaged over all."""
    momentum: float = 0.0
    first: int = 1
    """What the averager counts the first step as; PyTorch's own is 0."""


def main(out: Path, inputs: torch.Tensor, targets: torch.Tensor, plans: list[Plan]):
    """Least squares of minibatches (workers, steps, b, d) and (workers, steps, b), for each plan.

    Saves the parameters (plans, steps, d) after each step.
    """
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    after = [trained(plan, inputs[rank], targets[rank]) for plan in plans]
    torch.save(torch.stack(after), out / f"{rank}.pt")
    dist.destroy_process_group()


def trained(plan: Plan, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # Its package warns of torch.jit, which is an error in the tests that import this file.
    from torch.distributed.optim import PostLocalSGDOptimizer

    model = nn.Linear(inputs.shape[-1], 1, bias=False, dtype=inputs.dtype)
    nn.init.zeros_(model.weight)
    parallel = DistributedDataParallel(model)
    local = PostLocalSGDState(None, None, plan.switch, post_local_gradient_allreduce=False)
    parallel.register_comm_hook(local, post_localSGD_hook)
    optimizer = PostLocalSGDOptimizer(
        torch.optim.SGD(parallel.parameters(), lr=0.05, momentum=plan.momentum), averager(plan)
    )
    after: list[torch.Tensor] = []
    for A, b in zip(inputs, targets, strict=True):
        optimizer.zero_grad()
        (parallel(A).squeeze(1) - b).square().mean().div(2).backward()
        optimizer.step()
        after.append(model.weight.detach().squeeze(0).clone())
    return torch.stack(after)


def averager(plan: Plan) -> PeriodicModelAverager | HierarchicalModelAverager:
    if len(plan.periods) > 1:
        made = HierarchicalModelAverager(OrderedDict(plan.periods))
    else:
        made = PeriodicModelAverager(next(iter(plan.periods)), warmup_steps=plan.switch)
    made.step = plan.first
    return made
