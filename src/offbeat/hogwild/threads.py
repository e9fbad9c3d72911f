"""Training by threads that share x."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from .loops import Rules, Watch, work
from .outcome import Collisions, Outcome, cores_here, machine
from .problem import Instance, SparseProblem
from .schemes import Settings, deal
from .training import Report, Training, no_watch, shared_by_threads


def train(problem: SparseProblem, settings: Settings, report: Report | None = None) -> Outcome:
    """Train a problem on threads of this machine.

    Seconds are those of dealing the edges, and of all threads' going through theirs.

    Args:
        problem: what to train.
        settings: scheme, number of threads and the rest.
        report: called with the number of each epoch and the state after it.

    Raises:
        ValueError: in one line, if the problem's data is damaged, or it cannot be trained so.
        Diverged: x is not finite any more.
    """
    training = Training(problem, settings)
    instance, x = training.instance, training.x
    shared = shared_by_threads(instance.vertices)
    watch = _watch(instance, settings) if settings.watch else no_watch(settings.workers)
    rules = Rules(*settings.rules)

    def take(share: Any, thread: int, step: Any) -> None:
        own = x[thread % len(x)]
        work(instance.costs, share, own, step, rules, shared, watch, thread)

    def epoch(step: Any, rng: np.random.Generator) -> float:
        begun = time.perf_counter()
        shared.turn[0] = 0
        jobs = [
            pool.submit(take, share, thread, step)
            for thread, share in enumerate(deal(instance.edges, settings, rng))
        ]
        wait(jobs)
        taken = time.perf_counter() - begun
        for job in jobs:
            job.result()
        return taken

    with ThreadPoolExecutor(settings.workers) as pool:
        try:
            # Compiles; there is nothing to do but that.
            take(np.empty(0, np.int64), 0, x.dtype.type(0))
            training.run(epoch, report)
        except BaseException:
            # The pool waits for its threads.
            shared.stop[0] = 1
            raise
    return training.outcome(
        simulated=False,
        collisions=_collisions(watch) if settings.watch else None,
        machine=machine(),
        notes=_notes(settings),
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
