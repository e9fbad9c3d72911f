"""Training by threads that share x."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from ..cores import cores_here
from .loops import Rules, Shared, Watch, work
from .outcome import Collisions, Outcome, machine
from .problem import Instance, SparseProblem
from .ring import go_round, ring_of
from .schemes import Settings, orders
from .training import Report, Training, go_through, no_watch, shared_by_threads

MOST_BLOCKS = 64
"""Blocks that a thread takes at a time, where there are many."""
MOST_THREADS = 1024
"""More would start one after the other, and hardly run; `simulate` has workers without number."""
LEAST_TURNS = 64
"""How often each thread takes edges in an epoch, so that all end at about the same time."""


def train(problem: SparseProblem, settings: Settings, report: Report | None = None) -> Outcome:
    """Train a problem on threads of this machine.

    Seconds are those of drawing the order, and of the threads' going through the edges.

    Args:
        problem: what to train.
        settings: scheme, number of threads and the rest.
        report: called with the number of each epoch and the state after it.

    Raises:
        ValueError: in one line, if the problem's data is damaged, or it cannot be trained so.
        Diverged: x is not finite any more.
    """
    require_threads(settings.workers)
    training = Training(problem, settings)
    instance, workers = training.instance, settings.workers
    watch = _watch(instance, settings) if settings.watch else no_watch(workers)
    block = min(settings.block, instance.edges)
    turns = instance.edges // (workers * LEAST_TURNS * block)
    chunk = block * min(MOST_BLOCKS, max(1, turns))
    rules = Rules(*settings.rules, most=instance.most, chunk=chunk)
    stop = np.zeros(1, np.int64)
    # What is averaged does not meet before the end.
    exchanged = training.x if settings.scheme == "hogwild++" else training.x[:1]
    ring = ring_of(exchanged, training.settings.hold or 0)

    def take(thread: int, x: Any, order: Any, shared: Shared, step: Any) -> None:
        work(instance.costs, order, x, step, rules, shared, watch, ring, thread)

    def epoch(step: Any, rng: np.random.Generator) -> float:
        begun = time.perf_counter()
        drawn = orders(instance.edges, settings, rng)
        # Where there is an order for each thread they have nothing in common.
        every = [shared_by_threads(instance.vertices)._replace(stop=stop) for _ in drawn]
        jobs = [
            pool.submit(
                take,
                thread,
                training.x[thread % len(training.x)],
                drawn[thread % len(drawn)],
                every[thread % len(every)],
                step,
            )
            for thread in range(workers)
        ]
        wait(jobs)
        if len(ring.x) > 1:
            go_round(instance.costs, ring)
        taken = time.perf_counter() - begun
        for job in jobs:
            job.result()
        return taken

    with ThreadPoolExecutor(settings.workers) as pool:
        try:
            # Compiles; there is nothing to do but that.
            go_through(instance, np.empty(0, np.int64), training.x[0], training.x.dtype.type(0))
            go_round(instance.costs, ring_of(training.x[:, :0], 0))
            training.run(epoch, report)
        except BaseException:
            # The pool waits for its threads.
            stop[0] = 1
            raise
    return training.outcome(
        simulated=False,
        collisions=_collisions(watch) if settings.watch else None,
        machine=machine(),
        notes=_notes(settings),
    )


def require_threads(count: int) -> None:
    """Refuse more threads than can be of use.

    Raises:
        ValueError: in one line, if there are more than 1,024.
    """
    if count > MOST_THREADS:
        raise ValueError(
            f"{count:,} threads; at most {MOST_THREADS:,}, and this machine has {cores_here()} "
            "cores: simulate more"
        )


def _watch(instance: Instance, settings: Settings) -> Watch:
    def by_vertex(*first: int) -> Any:
        return np.zeros((*first, instance.vertices), np.int64)

    return no_watch(settings.workers)._replace(
        on=True,
        last=by_vertex(),
        collisions=by_vertex(settings.workers),
        made=by_vertex(settings.workers),
        counted=by_vertex(),
    )


def _collisions(watch: Watch) -> Collisions:
    made = watch.made.sum(0)
    return Collisions(
        updates=made,
        collided=watch.collisions.sum(0),
        lost=made - watch.counted,
        mean_lag=float(watch.lag[:, 0].sum() / max(watch.finished[:, 0].sum(), 1)),
        max_lag=int(watch.lag[:, 1].max()),
    )


def _notes(settings: Settings) -> list[str]:
    notes = list[str]()
    cores = cores_here()
    if settings.workers > cores:
        notes.append(
            f"{settings.workers} threads on {cores} core{'s' * (cores != 1)}: they take turns, and "
            "one that waits for a lock may wait for a core"
        )
    if settings.watch:
        notes.append("collisions were noted, which makes updates slower")
    return notes
