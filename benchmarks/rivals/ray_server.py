"""Ray: the asynchronous parameter server of its documentation's "Parameter Server" example.

Its form is kept: actors for server and workers, weights as a state dict, gradients as NumPy
arrays, a driver that waits for whichever gradient is ready and asks for the next. Left out is what
would slow it down: evaluations, and a data loader in place of tensors in memory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.groups import Place, Step
from common.workloads import RandomData, minibatches
from torch import Tensor

Weights = dict[str, Tensor]
Gradients = list[Any]
"""A NumPy array for each parameter."""


class Server:
    def __init__(self, problem: RandomData) -> None:
        self.model = problem.model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001)

    def apply_gradients(self, *gradients: Gradients) -> Weights:
        summed = [np.stack(parts).sum(axis=0) for parts in zip(*gradients, strict=True)]
        self.optimizer.zero_grad()
        for parameter, gradient in zip(self.model.parameters(), summed, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        self.optimizer.step()
        return self.get_weights()

    def get_weights(self) -> Weights:
        return self.model.state_dict()


class Worker:
    def __init__(self, problem: RandomData, rank: int) -> None:
        self.problem = problem
        self.model = problem.model()
        self.draw = minibatches(problem, rank)

    def compute_gradients(self, weights: Weights) -> Gradients:
        self.model.load_state_dict(weights)
        inputs, targets = self.draw()
        self.model.zero_grad()
        self.problem.loss(self.model(inputs), targets).backward()
        return [p.grad.numpy() for p in self.model.parameters() if p.grad is not None]


@contextmanager
def updates(place: Place, problem: RandomData, workers: int) -> Generator[Step]:
    """A step is one update by whichever worker is ready."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    # The actors' processes import this package.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    import ray

    ray.init(
        num_cpus=workers + 1,
        include_dashboard=False,
        configure_logging=True,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        server = ray.remote(Server).remote(problem)
        actors = [ray.remote(Worker).remote(problem, rank) for rank in range(workers)]
        weights = server.get_weights.remote()
        under_way = {actor.compute_gradients.remote(weights): actor for actor in actors}
        ray.wait(list(under_way), num_returns=workers)

        def step() -> None:
            ready, _ = ray.wait(list(under_way))
            actor = under_way.pop(ready[0])
            weights = server.apply_gradients.remote(ready[0])
            under_way[actor.compute_gradients.remote(weights)] = actor

        yield step
    finally:
        ray.shutdown()
