"""Which samples a worker holds, and which of them make its minibatches.

Both are functions of seeds and counts alone, never of timing, so that the same worker sees the same
data in the same order wherever it runs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class Partition(ABC):
    """A rule that deals samples out to workers; subclasses are frozen keyword-only dataclasses."""

    @abstractmethod
    def shards(self, targets: Tensor, workers: int) -> list[Tensor]:
        """One int64 tensor of sample numbers for each worker; call it through `shard`."""


@dataclass(frozen=True, kw_only=True)
class IID(Partition):
    """All samples in random order, cut into parts whose sizes differ by at most one.

    Args:
        seed: of the order.

    Raises:
        ValueError: if `seed` is negative or has more than 64 bits.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        _check_seed(self.seed)

    def shards(self, targets: Tensor, workers: int) -> list[Tensor]:
        generator = np.random.Generator(np.random.PCG64(self.seed))
        order = torch.from_numpy(generator.permutation(len(targets)))
        return list(order.tensor_split(workers))


def shard(partition: Partition, targets: Tensor, workers: int) -> list[Tensor]:
    """Deal the samples with these targets (N, ...) out: for each worker, sample numbers (n_i,).

    Raises:
        ValueError: if there are no workers, or fewer samples than workers.
    """
    if not 1 <= workers <= len(targets):
        raise ValueError(
            f"{len(targets)} samples cannot be dealt out to {workers} workers: "
            "each worker needs a sample"
        )
    return partition.shards(targets, workers)


class Batches:
    """The minibatches of one worker, numbered by its own steps.

    Each epoch is a permutation of the shard that (seed, rank, epoch) decide, cut into minibatches
    of exactly `batch_size`; what is left over at the end of an epoch is dropped. Any step can be
    asked for; the permutation of the last epoch asked for is kept, so consecutive steps are cheap.

    Args:
        shard_indices: sample numbers of this worker (n,).
        batch_size: samples of one minibatch, at most n.
        seed: of the order.
        rank: of this worker.

    Raises:
        ValueError: if a minibatch is larger than the shard, or an argument is out of range.
    """

    def __init__(self, shard_indices: Tensor, batch_size: int, seed: int, rank: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if batch_size > len(shard_indices):
            raise ValueError(
                f"worker {rank} holds {len(shard_indices)} samples, fewer than batch_size "
                f"{batch_size}: use smaller minibatches, fewer workers or more samples"
            )
        if rank < 0:
            raise ValueError(f"rank must not be negative, not {rank}")
        _check_seed(seed)
        self._shard = shard_indices.to(torch.int64).numpy()
        self._batch_size = batch_size
        # Philox is a function of key and counter: the highest word of the counter is the epoch.
        # Setting it costs a tenth of a new generator, which tells where epochs are short.
        self._bits = np.random.Philox(key=np.array([seed, rank], dtype=np.uint64))
        self._start_state = self._bits.state
        self._generator = np.random.Generator(self._bits)
        self._epoch: int | None = None
        self._minibatches: tuple[Tensor, ...] = ()
        self._per_epoch = len(shard_indices) // batch_size

    @property
    def per_epoch(self) -> int:
        """Minibatches of one epoch."""
        return self._per_epoch

    def indices(self, step: int) -> Tensor:
        """Sample numbers (b,) of the minibatch at `step` >= 0; read-only, for they are a view."""
        epoch, place = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            self._start(epoch)
        return self._minibatches[place]

    def _start(self, epoch: int) -> None:
        if epoch < 0:
            raise ValueError("steps are numbered from 0")
        self._start_state["state"]["counter"][3] = epoch
        self._bits.state = self._start_state
        order = self._generator.permutation(self._shard)
        # Cut all at once: half the cost of slicing at every step.
        whole = torch.from_numpy(order[: self._per_epoch * self._batch_size])
        self._minibatches = whole.view(self._per_epoch, self._batch_size).unbind()
        self._epoch = epoch


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be from 0 to 2**64 - 1, not {seed}")
