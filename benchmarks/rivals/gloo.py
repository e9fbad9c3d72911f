"""torch.distributed over gloo: DistributedDataParallel, and all_reduce by itself."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from common.groups import Place, Step
from common.workloads import Optimizer, RandomData, minibatches
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def ddp(place: Place, problem: RandomData) -> Generator[Step]:
    """The tutorial's loop, with gradients that are views of the buckets."""
    with place.join_gloo():
        model = DistributedDataParallel(problem.model(), gradient_as_bucket_view=True)
        optimizer = Optimizer(model.parameters())
        draw = minibatches(problem, place.rank)

        def step() -> None:
            inputs, targets = draw()
            optimizer.zero_grad()
            problem.loss(model(inputs), targets).backward()
            optimizer.step()

        yield step


@contextmanager
def all_reduce(place: Place, count: int) -> Generator[Step]:
    """The sum of so many float32 numbers, in place."""
    with place.join_gloo():
        values = torch.zeros(count)

        def step() -> None:
            dist.all_reduce(values)

        yield step
