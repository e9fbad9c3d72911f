"""Compute: minibatch gradients at flat snapshots, one by one, batched, or on a pool of threads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ..parameters import Layout
from ..problems import Split

Loss = Callable[[Tensor, Tensor], Tensor]
EvaluatorName = Literal["serial", "vmap", "pool"]


class Job:
    """One gradient to be computed: a pure function of what is fixed when it is asked for."""

    __slots__ = ("indices", "loss", "seed", "snapshot", "vector")

    def __init__(self, snapshot: Tensor, indices: Tensor, seed: int) -> None:
        self.snapshot = snapshot  # (d,)
        self.indices = indices  # (b,) training samples
        self.seed = seed
        self.vector: Tensor | None = None
        self.loss = float("nan")


class EvaluationBuffer:
    """A module whose parameters are views of one flat tensor, into which snapshots are loaded.

    The views are separate from every node's parameters: whoever changes those between a forward
    and its backward cannot spoil the gradient.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layout = Layout.of(module)
        self.parameters = list(module.parameters())
        self.flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        for parameter, view in zip(self.parameters, self.layout.views(self.flat), strict=True):
            parameter.data = view


class Evaluator(ABC):
    """Computes gradients: `evaluate` sets `vector` and `loss` of every job."""

    @abstractmethod
    def evaluate(self, jobs: Sequence[Job]) -> None: ...

    def close(self) -> None:
        """No more gradients are needed."""


class SerialEvaluator(Evaluator):
    """One gradient after the other, as a plain training loop computes them."""

    def __init__(self, module: nn.Module, loss: Loss, train: Split) -> None:
        self.buffer = EvaluationBuffer(module)
        self._loss = loss
        self._train = train
        self._random = has_randomness(module)

    def evaluate(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.evaluate_one(job)

    def evaluate_one(self, job: Job) -> None:
        self.buffer.flat.copy_(job.snapshot)
        if self._random:
            torch.default_generator.manual_seed(job.seed)
        inputs, targets = self._train.inputs[job.indices], self._train.targets[job.indices]
        loss = self._loss(self.buffer.module(inputs), targets)
        gradients = torch.autograd.grad(loss, self.buffer.parameters)
        job.vector = self.buffer.layout.flatten(gradients)
        job.loss = loss.item()


class PoolEvaluator(Evaluator):
    """One gradient per thread of a pool, each thread with a copy of the module.

    Every thread computes with one core, so the bits are those of `SerialEvaluator` on one. The
    threads start with the first gradient and live until `close`.
    """

    def __init__(
        self, make_module: Callable[[], nn.Module], loss: Loss, train: Split, threads: int
    ) -> None:
        # Modules are made here: threads that seed PyTorch's one generator would disturb each other.
        self._evaluators = [SerialEvaluator(make_module(), loss, train) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads, "offbeat-gradient")

    def evaluate(self, jobs: Sequence[Job]) -> None:
        left = iter(jobs)  # Shared: whichever thread is free takes the next.
        working = [self._pool.submit(_work_off, left, each) for each in self._evaluators]
        for thread in working:
            thread.result()

    def close(self) -> None:
        self._pool.shutdown()


def _work_off(left: Iterator[Job], evaluator: SerialEvaluator) -> None:
    torch.set_num_threads(1)
    for job in left:
        evaluator.evaluate_one(job)


Programs = dict[tuple[Any, ...], Callable[..., Any]]
"""Traced programs by the shapes and types of their arguments."""


def programs_of(problem: Hashable, seed: int) -> Programs:
    """The programs traced so far for that problem and that seed of its model, to be added to."""
    try:
        return _programs_of(problem, seed)
    except TypeError:  # A problem that cannot be hashed shares nothing.
        return {}


# Small, because a problem may hold its user's tensors.
@lru_cache(maxsize=4)
def _programs_of(problem: Hashable, seed: int) -> Programs:
    return {}


class VmapEvaluator(Evaluator):
    """All gradients together: `torch.func.vmap` over a matrix (k, d) of snapshots.

    The batched program is traced once for each k, which halves its cost in Python. A trace costs
    as much as a thousand gradients of a small model, so batches are filled up with repeated rows
    to one of a few sizes, and `programs` may be shared with other evaluators.
    """

    SIZES = (4, 8, 16, 32, 64, 96, 128)

    def __init__(
        self, module: nn.Module, loss: Loss, train: Split, programs: Programs | None = None
    ) -> None:
        self.layout = Layout.of(module)
        self._train = train
        module.requires_grad_(False)

        def loss_of(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            return loss(functional_call(module, parameters, (inputs,)), targets)

        self._batched = vmap(grad_and_value(loss_of))
        self._programs = {} if programs is None else programs

    def evaluate(self, jobs: Sequence[Job]) -> None:
        by_size: dict[int, list[Job]] = {}
        for job in jobs:
            by_size.setdefault(len(job.indices), []).append(job)
        for alike in by_size.values():
            for start in range(0, len(alike), self.SIZES[-1]):
                self._evaluate_batch(alike[start : start + self.SIZES[-1]])

    def _evaluate_batch(self, jobs: Sequence[Job]) -> None:
        k = next(size for size in self.SIZES if size >= len(jobs))
        rows = list(jobs) + [jobs[-1]] * (k - len(jobs))
        indices = torch.stack([job.indices for job in rows])
        inputs, targets = self._train.inputs[indices], self._train.targets[indices]
        snapshots = torch.stack([job.snapshot for job in rows])
        parameters = {
            name: snapshots[:, span].view(k, *shape)
            for name, span, shape in zip(
                self.layout.names, self.layout.spans, self.layout.shapes, strict=True
            )
        }
        key = (inputs.shape, inputs.dtype, targets.shape, targets.dtype, snapshots.dtype)
        program = self._programs.get(key)
        if program is None:
            program = make_fx(self._batched)(parameters, inputs, targets)
            self._programs[key] = program
        gradients, losses = program(parameters, inputs, targets)
        flat = torch.cat([gradients[name].reshape(k, -1) for name in self.layout.names], dim=1)
        for job, vector, loss in zip(jobs, flat.unbind(), losses.tolist(), strict=False):
            job.vector = vector
            job.loss = loss


def has_randomness(module: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.dropout._DropoutNd) for m in module.modules())


def choose_evaluator(module: nn.Module, jobs_in_flight: int) -> EvaluatorName:
    """The evaluator for that many gradients in flight, from the module alone.

    Batching pays for small models and costs for convolutions on CPU, where threads pay. It is a
    rule and not a timing, so that the same command gives the same bits on every day.
    """
    buffers = any(True for _ in module.buffers())
    if buffers or has_randomness(module) or jobs_in_flight < 4:
        return "serial"
    on_cpu = all(p.device.type == "cpu" for p in module.parameters())
    convolutional = any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules())
    large = sum(p.numel() for p in module.parameters()) > 200_000
    return "pool" if on_cpu and (convolutional or large) else "vmap"
