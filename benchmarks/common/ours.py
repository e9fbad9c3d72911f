"""offbeat, by the same two ways that its users have: `offbeat.run`, and a loop of one's own."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

import offbeat
from offbeat.method import Method
from offbeat.runs import Run

from .groups import Place, Step
from .workloads import Optimizer, RandomData, plain_step

WARM = 10
"""Steps of each worker that do not count."""
NEVER = 1 << 60
"""Samples between evaluations."""


@contextmanager
def loop(place: Place, problem: RandomData, method: Method) -> Generator[Step]:
    """The README's loop, as torchrun would start it."""
    place.announce()
    model = problem.model()
    with offbeat.distribute(model, Optimizer(model.parameters()), method=method) as optimizer:
        yield plain_step(problem, model, optimizer, place.rank)


def run(method: Method, problem: RandomData, *, workers: int = 2, steps: int) -> Run:
    """A run as processes, each worker for so many steps (after `WARM` more), never evaluated.

    Raises:
        RuntimeError: it ended badly.
    """
    gradients = workers * (WARM + steps + 1)
    return _run(method, problem, workers, offbeat.Budget(samples=gradients * problem.batch_size))


def run_for(method: Method, problem: RandomData, *, workers: int, seconds: float) -> Run:
    """The same for so many seconds, of a method that may ask for no gradients.

    Raises:
        RuntimeError: it ended badly.
    """
    return _run(method, problem, workers, offbeat.Budget(seconds=seconds))


def _run(method: Method, problem: RandomData, workers: int, budget: offbeat.Budget) -> Run:
    run = offbeat.run(
        method,
        problem,
        cluster=offbeat.Cluster(workers=workers),
        optimizer=Optimizer,
        budget=budget,
        evaluate_every=NEVER,
    )
    if run.error is not None:
        raise RuntimeError(f"{type(method).__name__}: {run.error}")
    return run


def gap_seconds(run: Run) -> list[float]:
    """From the end of each gradient to the beginning of the worker's next one."""
    begun, ended = _by_worker(run, "start_ns"), _by_worker(run, "end_ns")
    return _seconds([s[1:] - e[:-1] for s, e in zip(begun, ended, strict=True)])


def together_seconds(run: Run) -> list[float]:
    """From the end of the slowest worker's k-th gradient until all go on to the next."""
    begun, ended = np.stack(_by_worker(run, "start_ns")), np.stack(_by_worker(run, "end_ns"))
    return _seconds([begun[:, 1:].max(axis=0) - ended[:, :-1].max(axis=0)])


def updates_per_second(run: Run) -> float:
    """Optimizer steps of a run's middle, without its first and last tenth."""
    at = np.sort(run.trace.steps["at_ns"])
    at = at[len(at) // 10 : len(at) - len(at) // 10]
    return (len(at) - 1) / (float(at[-1] - at[0]) / 1e9)


def message_seconds(run: Run, kind: str) -> list[float]:
    """Between the sendings of one message of that kind and of the next, of all senders."""
    rows = run.trace.messages
    sent = np.sort(rows["sent_ns"][rows["kind"] == run.trace.kind(kind)])
    return _seconds([np.diff(sent[WARM:])])


def _seconds(nanoseconds: Sequence[NDArray[np.int64]]) -> list[float]:
    return (np.concatenate(nanoseconds) / 1e9).tolist()


def _by_worker(run: Run, column: str) -> list[NDArray[np.int64]]:
    rows = run.trace.gradients
    workers = range(run.experiment.cluster.workers)
    return [np.sort(rows[column][rows["node"] == worker])[WARM:] for worker in workers]
