"""Pace: how long the gradients of a real run last, beyond what computing them takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from ..experiment import Experiment
from .clock import SECOND, nanoseconds


@dataclass(kw_only=True)
class Punctuality:
    """How many of a worker's gradients computing took longer than was to be injected."""

    late: int = 0
    gradients: int = 0


class Pace:
    """Holds the gradients of one host back.

    With `experiment.inject` each lasts as long as the simulator would give it, drawn from the
    same stream. Without it only a slow fault stretches them. No lock is held meanwhile, so that
    messages are served as during a gradient.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.slowdown = 1.0
        """By a fault that lasts at present."""
        self.punctuality: dict[int, Punctuality] = {}
        self._inject = experiment.inject
        self._cluster, self._seed = experiment.cluster, experiment.seed
        self._times: dict[int, Iterator[float]] = {}
        self._over = threading.Event()

    def injected(self, rank: int) -> int | None:
        """Nanoseconds that the gradient which begins now is to last; None without injection."""
        if not self._inject:
            return None
        if rank not in self._times:
            self._times[rank] = self._cluster.compute_times(rank, self._seed)
            self.punctuality[rank] = Punctuality()
        return nanoseconds(next(self._times[rank]) * self.slowdown)

    def hold(self, rank: int, took: int, injected: int | None) -> None:
        """Wait out what is left of a gradient that took so many nanoseconds to compute."""
        if injected is None:
            wanted = round(took * self.slowdown)
        else:
            wanted = injected
            self.punctuality[rank].gradients += 1
            self.punctuality[rank].late += took > injected
        if wanted > took:
            self._over.wait((wanted - took) / SECOND)

    def end(self) -> None:
        """Wait no more: the run ends."""
        self._over.set()
