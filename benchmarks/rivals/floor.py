"""The floor: each process trains alone, at the same time as the other, and keeps freed memory."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from common.groups import Place, Step
from common.workloads import Optimizer, RandomData, plain_step

from offbeat.runtime.memory import keep_freed_memory


@contextmanager
def alone(place: Place, problem: RandomData) -> Generator[Step]:
    """A plain PyTorch loop, with offbeat's setting of the C library's allocator."""
    keep_freed_memory()
    model = problem.model()
    optimizer = Optimizer(model.parameters())
    yield plain_step(problem, model, optimizer, place.rank)


@contextmanager
def copy(place: Place, count: int) -> Generator[Step]:
    """A copy of so many float32 numbers, from memory that is there to memory that is there."""
    source, target = torch.ones(count), torch.zeros(count)

    def step() -> None:
        target.copy_(source)

    yield step
