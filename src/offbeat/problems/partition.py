"""Which samples a worker holds, and which of them make its minibatches.

Both are functions of seeds and counts alone, never of timing, so that the same worker sees the same
data in the same order wherever it runs.
"""

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offbeat.problems.holdout import is_classes


class Partition(ABC):
    """A rule that deals samples out to workers; subclasses are frozen keyword-only dataclasses."""

    @abstractmethod
    def shards(self, targets: Tensor, workers: int, seed: int) -> list[Tensor]:
        """One int64 tensor of sample numbers for each worker; call it through `shard`.

        Raises:
            ValueError: in one line, if samples with these targets cannot be dealt out so.
        """


@dataclass(frozen=True, kw_only=True)
class IID(Partition):
    """All samples in random order, cut into parts whose sizes differ by at most one."""

    def shards(self, targets: Tensor, workers: int, seed: int) -> list[Tensor]:
        order = torch.from_numpy(_generator(seed).permutation(len(targets)))
        return list(order.tensor_split(workers))


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Partition):
    """Divides each class over the workers in proportions from Dirichlet(alpha, ..., alpha).

    A large alpha comes near to `IID`; a small one gives each class to a single worker, so that
    some workers hold several classes and others nothing.

    Args:
        alpha: concentration, positive.

    Raises:
        ValueError: if `alpha` is not positive and finite.

    Reference: Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks",
    ICML 2019.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha:g}; it must be positive and finite")

    def shards(self, targets: Tensor, workers: int, seed: int) -> list[Tensor]:
        generator = _generator(seed)
        parts: list[list[Tensor]] = [[] for _ in range(workers)]
        for samples in _by_class(self, targets, generator):
            shares = generator.dirichlet(np.full(workers, self.alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(samples)).astype(np.int64)
            for part, piece in zip(
                parts, samples.tensor_split(torch.from_numpy(cuts)), strict=True
            ):
                part.append(piece)
        return _shuffled(parts, generator)


@dataclass(frozen=True, kw_only=True)
class ByLabel(Partition):
    """Each worker holds samples of exactly that many classes, and every class is held by someone.

    Workers take the classes in turn, in random order; those that hold the same class have equal
    shares of it, to within one sample.

    Args:
        classes_per_worker: how many.

    Raises:
        ValueError: if `classes_per_worker` is below 1.

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017.
    Differences: the paper cuts the samples, sorted by class, into two pieces for each worker, so
    that most of its workers hold two classes.
    """

    classes_per_worker: int = 2

    def __post_init__(self) -> None:
        if self.classes_per_worker < 1:
            raise ValueError(
                f"classes_per_worker is {self.classes_per_worker}; it must be at least 1"
            )

    def shards(self, targets: Tensor, workers: int, seed: int) -> list[Tensor]:
        generator, each = _generator(seed), self.classes_per_worker
        classes = _by_class(self, targets, generator)
        if each > len(classes):
            raise ValueError(
                f"classes_per_worker is {each}, and there are {len(classes)} classes only"
            )
        if workers * each < len(classes):
            raise ValueError(
                f"{workers} workers with {each} classes each leave some of the {len(classes)} "
                f"classes to nobody: classes_per_worker must be at least "
                f"{-(-len(classes) // workers)}"
            )
        turns = generator.permutation(len(classes)).tolist()
        holders: list[list[int]] = [[] for _ in classes]
        for place in range(workers * each):
            holders[turns[place % len(classes)]].append(place // each)
        parts: list[list[Tensor]] = [[] for _ in range(workers)]
        for samples, held_by in zip(classes, holders, strict=True):
            if len(samples) < len(held_by):
                raise ValueError(
                    f"a class has {len(samples)} samples, too few for the {len(held_by)} workers "
                    "that are to hold it: use fewer workers or lower classes_per_worker"
                )
            for worker, piece in zip(held_by, samples.tensor_split(len(held_by)), strict=True):
                parts[worker].append(piece)
        return _shuffled(parts, generator)


def shard(partition: Partition, targets: Tensor, workers: int, seed: int = 0) -> list[Tensor]:
    """Deal the samples with these targets (N, ...) out: for each worker, sample numbers (n_i,).

    Raises:
        ValueError: if there are no workers, fewer samples than workers, targets that the partition
            cannot use, or a seed that is negative or has more than 64 bits.
    """
    if not 1 <= workers <= len(targets):
        raise ValueError(
            f"{len(targets)} samples cannot be dealt out to {workers} workers: "
            "each worker needs a sample"
        )
    _check_seed(seed)
    return partition.shards(targets, workers, seed)


def top_up(shards: Sequence[Tensor], least: int) -> tuple[list[Tensor], list[int]]:
    """Shards of at least that many samples each, and which workers' had to be topped up.

    What is missing is taken from whichever shard is the largest then, from its end. With too few
    samples altogether the shards are left as they are.
    """
    sizes = [len(part) for part in shards]
    short = [worker for worker, size in enumerate(sizes) if size < least]
    if sum(sizes) < least * len(sizes) or not short:
        return list(shards), []
    given: list[list[Tensor]] = [[] for _ in shards]
    largest = [(-size, worker) for worker, size in enumerate(sizes) if size > least]
    heapq.heapify(largest)
    for worker in short:
        for _ in range(least - len(shards[worker])):
            _, giver = heapq.heappop(largest)
            sizes[giver] -= 1
            given[worker].append(shards[giver][sizes[giver] : sizes[giver] + 1])
            heapq.heappush(largest, (-sizes[giver], giver))
    kept = (part[:size] for part, size in zip(shards, sizes, strict=True))
    return [torch.cat([own, *more]) for own, more in zip(kept, given, strict=True)], short


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


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _by_class(
    partition: Partition, targets: Tensor, generator: np.random.Generator
) -> list[Tensor]:
    """The sample numbers of each class, in random order."""
    if not is_classes(targets):
        raise ValueError(
            f"partition {type(partition).__name__} deals samples out by class, and these targets "
            f"are {str(targets.dtype).removeprefix('torch.')} of shape {tuple(targets.shape)}, "
            "not one class number a sample: use partition IID"
        )
    order = torch.from_numpy(generator.permutation(len(targets)))
    _, numbers = targets.unique(return_inverse=True)
    return [order[numbers[order] == c] for c in range(int(numbers.max()) + 1)]


def _shuffled(parts: list[list[Tensor]], generator: np.random.Generator) -> list[Tensor]:
    """Each worker's pieces as one shard, in random order, so that its end is no class's own."""
    whole = [torch.cat(pieces) for pieces in parts]
    return [part[torch.from_numpy(generator.permutation(len(part)))] for part in whole]


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be from 0 to 2**64 - 1, not {seed}")
