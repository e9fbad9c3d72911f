"""Gradients: those under way in a simulated run, and how long each of them takes."""

from __future__ import annotations

import os

from ..suspensions import GradientRequest
from .compute import (
    Evaluator,
    EvaluatorName,
    Job,
    PoolEvaluator,
    SerialEvaluator,
    VmapEvaluator,
    choose_evaluator,
    programs_of,
    require_suitable,
)
from .world import World


class Gradients:
    """What all workers of one simulation have asked for, computed at any time before it is due."""

    def __init__(self, world: World) -> None:
        experiment = world.experiment
        cluster = experiment.cluster
        name = experiment.evaluator
        if name == "auto":
            name = choose_evaluator(world.module, cluster.workers)
        require_suitable(name, world.module)
        self.evaluator: EvaluatorName = name
        self._world = world
        self._computer = self._make_evaluator()
        self._jobs: dict[GradientRequest, Job] = {}
        self._compute_times = [
            cluster.compute_times(rank, experiment.seed) for rank in world.workers
        ]

    def _make_evaluator(self) -> Evaluator:
        world = self._world
        loss, train = world.problem.loss, world.data.train
        if self.evaluator == "vmap":
            programs = programs_of(world.problem, world.experiment.seed)
            return VmapEvaluator(world.make_module(), loss, train, programs)
        if self.evaluator == "pool":
            return PoolEvaluator(world.make_module, loss, train, os.cpu_count() or 1)
        return SerialEvaluator(world.make_module(), loss, train)

    def ask(self, rank: int, request: GradientRequest) -> float:
        """Begin a worker's next gradient; how many seconds it takes."""
        # Fixed from here on: the evaluator may compute it now, or with others, or when it is due.
        request.snapshot = request.snapshot.clone()
        job = self._jobs[request] = self._world.job(rank, request)
        self._computer.ask(job)
        return next(self._compute_times[rank])

    def take(self, request: GradientRequest) -> Job:
        """The gradient, which is due."""
        job = self._jobs.pop(request)
        self._computer.answer(job)
        return job

    def drop(self, request: GradientRequest) -> None:
        """Nobody waits for it any more."""
        job = self._jobs.pop(request, None)
        if job is not None:
            self._computer.drop(job)

    def close(self) -> None:
        """No more are needed."""
        self._computer.close()
