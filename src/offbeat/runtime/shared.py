"""Shared parameters: one vector that all workers of a machine change in place (Hogwild!)."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor

_COUNT_BYTES = 8


class CommonParameters:
    """Parameters that all nodes of one process share."""

    def __init__(self, vector: Tensor) -> None:
        self.vector = vector
        self.version = 0

    def count(self, rank: int) -> None:
        self.version += 1


class MappedParameters:
    """Parameters that the workers of several processes share.

    They lie in memory without a name (a memfd): it lasts as long as a process has it mapped, so
    nothing is left behind, whoever is killed. As an argument of a `multiprocessing.Process` the
    object is the same memory in the child, whatever the start method.

    Each worker counts its own steps in a cell that nobody else writes, so that no count is lost.

    Args:
        initial: (d,), what the vector begins with.
        workers: how many will count their steps.

    Raises:
        ValueError: the parameters are not in main memory.
    """

    def __init__(self, initial: Tensor, workers: int) -> None:
        if initial.device.type != "cpu":
            raise ValueError(
                "processes share parameters in main memory, and these are on device "
                f"{initial.device}; use device cpu"
            )
        size = _start_of_vector(workers) + initial.numel() * initial.element_size()
        fd = os.memfd_create("offbeat-parameters")
        os.ftruncate(fd, size)
        self._map(fd, initial.dtype, workers)
        self.vector.copy_(initial)

    def _map(self, fd: int, dtype: torch.dtype, workers: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        self._workers = workers
        memory = mmap.mmap(fd, 0)
        # A tensor keeps the mapping alive, as does the view of the counts.
        self.vector = torch.frombuffer(memory, dtype=dtype, offset=_start_of_vector(workers))
        self._counts = memoryview(memory)[: workers * _COUNT_BYTES].cast("q")

    @property
    def version(self) -> int:
        return sum(self._counts)

    def count(self, rank: int) -> None:
        self._counts[rank] += 1

    def __reduce__(self) -> tuple[Callable[..., MappedParameters], tuple[Any, ...]]:
        return _attach, (reduction.DupFd(self._fd), self.vector.dtype, self._workers)


def _attach(duplicate: Any, dtype: torch.dtype, workers: int) -> MappedParameters:
    """The same parameters, in the process that has been given the descriptor."""
    shared = MappedParameters.__new__(MappedParameters)
    shared._map(duplicate.detach(), dtype, workers)
    return shared


def _start_of_vector(workers: int) -> int:
    """Bytes before the vector, which begins with a page: the counts lie there."""
    return -(-workers * _COUNT_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
