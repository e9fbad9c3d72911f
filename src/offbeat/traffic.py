"""Traffic: how much a method sends."""

from __future__ import annotations

from .method import Method
from .testing import Quadratic, simulated, small_experiment

ROUNDS = 32
"""A multiple of the periods at which methods commonly communicate."""


def models_sent(method: Method, workers: int, *, dimension: int = 4096) -> float:
    """Bytes that all nodes together send for each gradient, in sizes of the model.

    They are those of a short simulation with equal workers and a model of `dimension` numbers.
    """
    problem = Quadratic(dimension=dimension, samples=16 * workers, double=False)
    run = simulated(small_experiment(method, workers=workers, steps=ROUNDS, problem=problem))
    return run.metrics[-1].bytes / (len(run.trace.gradients) * 4 * dimension)
