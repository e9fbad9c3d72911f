"""Experiment: everything that decides a run, as pure data, and its YAML form."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from .cluster import Cluster
from .method import Method
from .problems import IID, Partition, Problem
from .schedule import Constant, Schedule
from .stepping import UNUSABLE
from .userfile import reference

OptimizerClass = Callable[[Iterable[Any]], Optimizer]
"""A `torch.optim` class with its settings bound: `functools.partial(torch.optim.SGD, lr=0.1)`."""

DEFAULT_SAMPLES = 30_000
"""Budget where none is given."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a run ends: at whichever comes first.

    Args:
        samples: gradients asked for, times the batch size; synchronous methods share it evenly.
        seconds: of virtual time, or of wall time in a real run.
        accuracy: reached at an evaluation.
    """

    samples: int | None = None
    seconds: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "seconds", "accuracy"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"budget.{name} is {value:g}; it must be positive")
        if self.samples is None and self.seconds is None:
            raise ValueError("the budget is endless: give budget.samples or budget.seconds")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a run.

    Args:
        method: the algorithm, with its own settings.
        problem: model, loss, data and batch size.
        cluster: workers, links and faults.
        optimizer: the inner optimizer, any first-order one of torch.optim or offbeat.optim.
        schedule: of the learning rate.
        budget: when the run ends.
        partition: how the training samples are dealt out to the workers.
        seed: decides the initial model, the order of the data and every random choice.
        evaluate_every: samples between evaluations; a thirtieth of the budget if not given.
        evaluate_on: the part of the data that evaluations use.
        evaluator: how the simulator computes gradients: one by one, batched, or on a pool of
            threads; chosen from the model if not given. Bits depend on it.
        threads: number of threads that PyTorch may use. Bits depend on it.
        device: where models, data and parameters live, such as cpu or cuda:0.
        inject: whether in a real run gradients take at least as long as the cluster says; the
            simulator knows no other times.
    """

    method: Method
    problem: Problem
    cluster: Cluster
    optimizer: OptimizerClass
    budget: Budget
    schedule: Schedule = Constant()
    partition: Partition = IID()
    seed: int = 0
    evaluate_every: int | None = None
    evaluate_on: Literal["validation", "test"] = "test"
    evaluator: Literal["auto", "serial", "vmap", "pool"] = "auto"
    threads: int = 1
    device: str = "cpu"
    inject: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {self.device!r} cannot be used: {reason}") from error
        if torch.device(self.device).type == "meta":
            raise ValueError("device 'meta' cannot be used: its tensors hold no numbers")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; it must be at least 1")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every is {self.evaluate_every}; it must be at least 1")
        name = getattr(optimizer_class(self.optimizer), "__name__", "")
        if name in UNUSABLE:
            raise ValueError(f"optimizer {name} cannot be used: {UNUSABLE[name]}")
        workers = self.cluster.workers
        self.method.validate(workers)
        nodes = workers + self.method.server_count
        for fault in self.cluster.faults:
            if not 0 <= fault.rank < nodes:
                raise ValueError(
                    f"fault {fault.kind} names node {fault.rank}; there are {workers} workers"
                    f" and {self.method.server_count} servers, 0 to {nodes - 1}"
                )
            if fault.kind in ("join", "slow", "leave") and fault.rank >= workers:
                raise ValueError(
                    f"fault {fault.kind} names node {fault.rank}, a server; only workers "
                    f"(0 to {workers - 1}) {fault.kind}"
                )
            if fault.kind == "join" and not self.method.survives_loss:
                raise ValueError(
                    f"{type(self.method).__name__} lets no worker join late; drop the fault or "
                    "use a method of which `offbeat methods` says that it survives a loss"
                )
        self.cluster.require_nodes(nodes)
        quota = self.quota
        if quota is not None and quota < 1:
            raise ValueError(
                f"budget.samples {self.budget.samples} is less than one minibatch of "
                f"{self.problem.batch_size} for each of {workers} workers"
            )

    @property
    def quota(self) -> int | None:
        """Gradients of each worker of a synchronous method."""
        if self.budget.samples is None or not self.method.synchronous:
            return None
        return self.budget.samples // (self.problem.batch_size * self.cluster.workers)

    @property
    def gradients(self) -> float:
        """Gradients of all workers together that the budget allows."""
        if self.budget.samples is None:
            return math.inf
        quota = self.quota
        if quota is not None:
            return quota * self.cluster.workers
        return max(1, self.budget.samples // self.problem.batch_size)

    @property
    def evaluation_interval(self) -> int:
        """Samples between evaluations."""
        if self.evaluate_every is not None:
            return self.evaluate_every
        samples = self.budget.samples or 100 * self.problem.batch_size * self.cluster.workers
        return max(self.problem.batch_size, samples // 30)


def optimizer_class(optimizer: OptimizerClass | type[Optimizer]) -> Any:
    """The class that an optimizer with bound settings makes."""
    while isinstance(optimizer, functools.partial):
        optimizer = optimizer.func
    return optimizer


def to_config(value: Any) -> Any:
    """The YAML form of an experiment or a part of it: what `--config` reads back."""
    if isinstance(value, Experiment | Budget | Cluster):
        return _fields(value)
    if isinstance(value, functools.partial) or (
        isinstance(value, type) and issubclass(value, Optimizer)
    ):
        settings: Mapping[str, Any] = getattr(value, "keywords", {})
        made = optimizer_class(value)
        return {"class_path": reference(made), "init_args": to_config(dict(settings))}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value).__bases__ == (object,):
            return _fields(value)
        return {"class_path": reference(type(value)), "init_args": _fields(value)}
    if isinstance(value, Mapping):
        return {key: to_config(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_config(item) for item in value]
    if isinstance(value, torch.dtype):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: to_config(getattr(value, f.name)) for f in dataclasses.fields(value)}
