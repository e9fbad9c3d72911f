"""Compute: minibatch gradients at flat snapshots, one by one, batched, or on a pool of threads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from queue import SimpleQueue
from textwrap import shorten
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import (
    functional_call,
    grad_and_value,
    replace_all_batch_norm_modules_,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx

from ..parameters import Layout, PiecewiseVector, Values
from ..problems import Split
from .errors import RunError

Loss = Callable[[Tensor, Tensor], Tensor]
EvaluatorName = Literal["serial", "vmap", "pool"]


class EvaluatorError(RunError):
    """An evaluator cannot compute this model's gradients."""


class Job:
    """One gradient to be computed: a pure function of what is fixed when it is asked for."""

    __slots__ = ("indices", "loss", "seed", "snapshot", "vector")

    def __init__(self, snapshot: Tensor, indices: Tensor, seed: int) -> None:
        self.snapshot = snapshot  # (d,)
        self.indices = indices  # (b,) training samples
        self.seed = seed
        self.vector: Values | None = None
        self.loss = float("nan")


ALIGNMENT = 64
"""Bytes: that of all memory that torch allocates. The bits of a matrix product may depend on it."""
COPIED = 1 << 20
"""Bytes of a snapshot, or of a gradient, up to which a copy costs less than to handle its parts."""


class EvaluationBuffer:
    """A module whose parameters are views of one flat tensor, into which snapshots are loaded.

    Parameters that somebody may change between a forward and its backward are to be copied before:
    `hold` lets the module compute with a snapshot itself, if that is cheaper than a copy.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layout = Layout.of(module)
        self.parameters = list(module.parameters())
        self.flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self._held = self._copied = torch.empty(0)
        self._bind(self.flat)

    def hold(self, snapshot: Tensor, *, again: bool = False) -> None:
        """Give the module the parameters (d,); nobody may change them while it computes.

        Args:
            again: the same tensor will be held at the next steps too. It is expected to be if it
                was held last time.
        """
        if snapshot is self._held:
            return
        again = again or snapshot is self._copied
        aligned = snapshot.data_ptr() % ALIGNMENT == 0
        if (again or snapshot.nbytes > COPIED) and aligned and snapshot.is_contiguous():
            self._bind(snapshot)
        else:
            self.load(snapshot)
            self._copied = snapshot

    def load(self, vector: Tensor) -> None:
        """Give the module a copy of the parameters (d,)."""
        self._bind(self.flat)
        self.flat.copy_(vector)

    @contextmanager
    def showing(self, vector: Tensor) -> Generator[None]:
        """Give the module a copy of other parameters (d,) for a while."""
        held, own = self._held, self.flat.clone()
        self.load(vector)
        try:
            yield
        finally:
            self.flat.copy_(own)
            self._bind(held)

    def _bind(self, flat: Tensor) -> None:
        if flat is not self._held:
            self._held = flat
            for parameter, view in zip(self.parameters, self.layout.views(flat), strict=True):
                parameter.data = view


class Evaluator(ABC):
    """Computes gradients at any time between being asked for them and having to answer."""

    def ask(self, job: Job) -> None:
        """Take in a job that will be needed."""

    def drop(self, job: Job) -> None:
        """A job that was asked for is not needed any more."""

    @abstractmethod
    def answer(self, job: Job) -> None:
        """Fill in `vector` and `loss` of a job that was asked for."""

    def close(self) -> None:
        """No more gradients are needed."""


class SerialEvaluator(Evaluator):
    """One gradient after the other, as a plain training loop computes them.

    Args:
        new: makes the tensor, like a given one, that a gradient is joined in. Large gradients are
            left in pieces then, which nobody changes, until somebody wants one whole.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        train: Split,
        new: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.buffer = EvaluationBuffer(module)
        self._loss = loss
        self._train = train
        self._new = new

    def answer(self, job: Job) -> None:
        self.evaluate_one(job)

    def evaluate_one(self, job: Job) -> None:
        # Dropout and its like repeat then, wherever they hide; it costs a microsecond.
        torch.default_generator.manual_seed(job.seed)
        if job.snapshot.is_cuda:
            torch.cuda.manual_seed(job.seed)
        self.evaluate_unseeded(job)

    def evaluate_unseeded(self, job: Job) -> None:
        self.buffer.hold(job.snapshot)
        inputs, targets = self._train.inputs[job.indices], self._train.targets[job.indices]
        loss = self._loss(self.buffer.module(inputs), targets)
        gradients = torch.autograd.grad(loss, self.buffer.parameters)
        layout, new = self.buffer.layout, self._new
        if any(gradient.is_sparse for gradient in gradients):
            job.vector = layout.flatten_sparse(gradients)
        elif new is None or self.buffer.flat.nbytes <= COPIED:
            job.vector = layout.flatten(gradients)
        else:
            pieces = PiecewiseVector(
                layout=layout, tensors=gradients, new=lambda: new(self.buffer.flat)
            )
            job.vector = pieces if pieces.can_stand else pieces.dense()
        job.loss = loss.item()


class PoolEvaluator(Evaluator):
    """Gradients on a pool of threads, beside the simulation, each thread with its own module.

    Every thread computes with one core, so the bits are those of `SerialEvaluator` on one. The
    threads start with the first gradient and live until `close`.
    """

    def __init__(
        self, make_module: Callable[[], nn.Module], loss: Loss, train: Split, threads: int
    ) -> None:
        self._free: SimpleQueue[SerialEvaluator] = SimpleQueue()
        for _ in range(threads):
            # Not in the threads, which would disturb each other's use of the one generator.
            self._free.put(SerialEvaluator(make_module(), loss, train))
        self._pool = ThreadPoolExecutor(
            threads, "offbeat-gradient", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._under_way: dict[Job, Future[None]] = {}

    def ask(self, job: Job) -> None:
        self._under_way[job] = self._pool.submit(self._evaluate, job)

    def drop(self, job: Job) -> None:
        self._under_way.pop(job).cancel()

    def answer(self, job: Job) -> None:
        self._under_way.pop(job).result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _evaluate(self, job: Job) -> None:
        evaluator = self._free.get()
        evaluator.evaluate_unseeded(job)
        self._free.put(evaluator)


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
    """All gradients asked for together: `torch.func.vmap` over a matrix (k, d) of snapshots.

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
        # In training it normalises by the minibatch; running statistics could not be batched.
        replace_all_batch_norm_modules_(module)

        def loss_of(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            return loss(functional_call(module, parameters, (inputs,)), targets)

        self._batched = vmap(grad_and_value(loss_of))
        self._programs = {} if programs is None else programs
        self._asked: list[Job] = []

    def ask(self, job: Job) -> None:
        self._asked.append(job)

    def drop(self, job: Job) -> None:
        if job.vector is None:
            self._asked.remove(job)

    def answer(self, job: Job) -> None:
        if job.vector is not None:
            return
        by_size: dict[int, list[Job]] = {}
        for asked in self._asked:
            by_size.setdefault(len(asked.indices), []).append(asked)
        self._asked.clear()
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
        key += (snapshots.device,)  # The trace holds the module's buffers.
        program = self._programs.get(key)
        if program is None:
            try:
                program = make_fx(self._batched)(parameters, inputs, targets)
            except Exception as error:
                raise EvaluatorError(
                    "this model's gradients cannot be computed together "
                    f"({shorten(str(error), 200)}); choose --evaluator serial"
                ) from error
            self._programs[key] = program
        gradients, losses = program(parameters, inputs, targets)
        flat = torch.cat([gradients[name].reshape(k, -1) for name in self.layout.names], dim=1)
        for job, vector, loss in zip(jobs, flat.unbind(), losses.tolist(), strict=False):
            job.vector = vector
            job.loss = loss


RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
SERIAL_UNDER_VMAP = (nn.RNNBase, nn.EmbeddingBag)
"""Layers that `vmap` computes one row after the other."""


def has_randomness(module: nn.Module) -> bool:
    return any(
        isinstance(m, RANDOM)
        or (isinstance(m, nn.RNNBase | nn.MultiheadAttention) and m.dropout > 0)
        for m in module.modules()
    )


def has_sparse_gradients(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse for m in module.modules())


def require_suitable(evaluator: EvaluatorName, module: nn.Module) -> None:
    """Refuse an evaluator that cannot compute this model's gradients, or not to the bit again.

    Raises:
        ValueError: what to choose instead.
    """
    if evaluator != "serial" and has_randomness(module):
        raise ValueError(
            f"evaluator {evaluator} cannot repeat a model with dropout to the bit; "
            "choose serial, or leave the choice out"
        )
    if evaluator == "vmap" and has_sparse_gradients(module):
        raise ValueError(
            "evaluator vmap cannot batch sparse gradients; choose serial or pool, "
            "or leave the choice out"
        )


def choose_evaluator(module: nn.Module, jobs_in_flight: int) -> EvaluatorName:
    """The evaluator for that many gradients in flight, from the module alone.

    Batching pays for small models and costs for convolutions on CPU, where threads pay; recurrent
    layers and sparse gradients cannot be batched. It is a rule and not a timing, so that the same
    command gives the same bits on every day.
    """
    if has_randomness(module) or jobs_in_flight < 4:
        return "serial"
    on_cpu = all(p.device.type == "cpu" for p in module.parameters())
    layers = list(module.modules())
    if has_sparse_gradients(module) or any(isinstance(m, SERIAL_UNDER_VMAP) for m in layers):
        return "pool" if on_cpu else "serial"
    convolutional = any(isinstance(m, nn.modules.conv._ConvNd) for m in layers)
    large = sum(p.numel() for p in module.parameters()) > 200_000
    return "pool" if on_cpu and (convolutional or large) else "vmap"
