"""Python's side of the command line: simulate, run, replay."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import torch

from .cluster import Cluster
from .experiment import DEFAULT_SAMPLES, Budget, Experiment, OptimizerClass
from .method import Method
from .problems import IID, Digits, Partition, Problem
from .runs import Run
from .runtime.simulated import Simulation
from .runtime.world import Progress
from .schedule import Constant, Schedule


def simulate(
    method: Method,
    problem: Problem | None = None,
    *,
    cluster: Cluster | None = None,
    optimizer: OptimizerClass | None = None,
    budget: Budget | None = None,
    schedule: Schedule | None = None,
    partition: Partition | None = None,
    seed: int = 0,
    evaluate_every: int | None = None,
    evaluate_on: Literal["validation", "test"] = "test",
    evaluator: Literal["auto", "serial", "vmap", "pool"] = "auto",
    threads: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
    directory: Path | str | None = None,
) -> Run:
    """Simulate a method under virtual time.

    Args:
        method: the algorithm, such as `offbeat.methods.AsyncSGD()`.
        problem: what is trained; the handwritten digits if not given.
        cluster: workers, links and faults; 16 workers with 1 Gbit/s links if not given.
        optimizer: a `torch.optim` class with its settings bound; SGD at rate 0.1 if not given.
        budget: when the run ends; after 30,000 samples if not given.
        schedule: of the learning rate; constant if not given.
        partition: how samples are dealt out to the workers; IID if not given.
        seed: decides the initial model, the order of the data and every random choice.
        evaluate_every: samples between evaluations; a thirtieth of the budget if not given.
        evaluate_on: the part of the data that evaluations use.
        evaluator: how gradients are computed; chosen from the model if not given.
        threads: that PyTorch may use.
        device: where models, data and parameters live, such as cpu or cuda:0.
        progress: called at each evaluation.
        directory: where the run is saved.

    Returns:
        The run. If it ended badly, `error` says why; what it recorded is kept.

    Raises:
        ValueError: in one line, for whatever cannot work.
    """
    experiment = Experiment(
        method=method,
        problem=problem or Digits(),
        cluster=cluster or Cluster(),
        optimizer=optimizer or functools.partial(torch.optim.SGD, lr=0.1),
        budget=budget or Budget(samples=DEFAULT_SAMPLES),
        schedule=schedule or Constant(),
        partition=partition or IID(),
        seed=seed,
        evaluate_every=evaluate_every,
        evaluate_on=evaluate_on,
        evaluator=evaluator,
        threads=threads,
        device=device,
    )
    return simulate_experiment(experiment, progress, directory)


def run(
    method: Method,
    problem: Problem | None = None,
    *,
    cluster: Cluster | None = None,
    optimizer: OptimizerClass | None = None,
    budget: Budget | None = None,
    schedule: Schedule | None = None,
    partition: Partition | None = None,
    seed: int = 0,
    evaluate_every: int | None = None,
    evaluate_on: Literal["validation", "test"] = "test",
    threads: int = 1,
    device: str = "cpu",
    inject: bool = False,
    progress: Progress | None = None,
    directory: Path | str | None = None,
) -> Run:
    """Run a method for real, each node as a process on this machine.

    Arguments are those of `simulate`; of the cluster the workers and the faults count, with two
    workers if it is not given. With `inject` each gradient takes at least as long as the cluster
    says. The processes import the script: it calls this under `if __name__ == "__main__"`.

    Raises:
        ValueError: in one line, for whatever cannot work.
    """
    experiment = Experiment(
        method=method,
        problem=problem or Digits(),
        cluster=cluster or Cluster(workers=2),
        optimizer=optimizer or functools.partial(torch.optim.SGD, lr=0.1),
        budget=budget or Budget(samples=DEFAULT_SAMPLES),
        schedule=schedule or Constant(),
        partition=partition or IID(),
        seed=seed,
        evaluate_every=evaluate_every,
        evaluate_on=evaluate_on,
        threads=threads,
        device=device,
        inject=inject,
    )
    return run_experiment(experiment, progress, directory)


def replay(directory: Path | str) -> Run:
    """Repeat a real run in the simulator, from the journals in its run directory.

    Raises:
        ValueError: that is not the directory of a real run, or it cannot be read.
    """
    from .config import load_experiment
    from .runtime.replay import replay_run

    where = Path(directory)
    return replay_run(load_experiment(where / "experiment.yaml"), where / "journals")


def simulate_experiment(
    experiment: Experiment, progress: Progress | None = None, directory: Path | str | None = None
) -> Run:
    """`simulate`, of an experiment that is there already."""
    result = Simulation(experiment, progress).run()
    if directory is not None:
        result.save(Path(directory))
    return result


def run_experiment(
    experiment: Experiment, progress: Progress | None = None, directory: Path | str | None = None
) -> Run:
    """`run`, of an experiment that is there already."""
    from .runtime.processes import run_processes

    where = None if directory is None else Path(directory)
    result = run_processes(experiment, where, progress)
    if where is not None:
        result.save(where)
    return result
