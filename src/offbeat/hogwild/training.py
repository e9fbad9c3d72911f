"""What training by threads and by simulated workers have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..labels import label
from .kinds import CutCosts
from .loops import NOTHING, Rules, Shared, Watch, work
from .outcome import Collisions, Epoch, Outcome
from .problem import Instance, SparseProblem
from .ring import default_hold, ring_of
from .schemes import Settings

Report = Callable[[int, Epoch], None]


class Diverged(ValueError):
    """x is not finite any more; the text is one line for the user."""


class Training:
    """A problem with its data, x as it is trained, and the progress.

    Raises:
        ValueError: if the problem and the settings do not go together.
    """

    def __init__(self, problem: SparseProblem, settings: Settings) -> None:
        self.problem = problem
        self.instance = problem.instance()
        if settings.adds == "atomic" and isinstance(self.instance.costs, CutCosts):
            raise ValueError(
                "atomic adds on a graph cut: a projection onto the simplex is no addition; use "
                "plain"
            )
        self.step = problem.step if settings.step is None else settings.step
        hold = settings.hold
        if settings.scheme == "hogwild++" and hold is None:
            touched = float(self.instance.sizes().mean()) * self.instance.width
            hold = default_hold(len(self.instance.start), touched, settings.copies)
        self.settings = dataclasses.replace(settings, step=self.step, hold=hold)
        self.x: NDArray[Any] = np.repeat(self.instance.start[None], settings.copies, axis=0)
        """(copies, d): of each worker if averaged, of each cluster of HogWild++, else one."""
        self.epochs = [self._state(0.0)]

    def run(
        self, epoch: Callable[[Any, np.random.Generator], float], report: Report | None
    ) -> None:
        """Go through all epochs.

        Args:
            epoch: trains with a step, drawing orders from a stream; returns the seconds it took.
            report: called with the number of each epoch and the state after it.

        Raises:
            Diverged: x is not finite any more.
        """
        rng = np.random.default_rng(self.settings.seed)
        for number in range(self.settings.epochs):
            step = self.x.dtype.type(self.step * self.settings.decay**number)
            taken = epoch(step, rng)
            self.epochs.append(self._state(self.epochs[-1].seconds + taken))
            if report is not None:
                report(number + 1, self.epochs[-1])
            if not np.isfinite(self.epochs[-1].objective):
                raise Diverged(
                    f"{self.settings.scheme} diverged in epoch {number + 1} with step "
                    f"{self.step:g}; choose a smaller one"
                )

    def _state(self, seconds: float) -> Epoch:
        mean = self.x.mean(0)
        return Epoch(
            seconds=seconds,
            objective=self.instance.objective(mean),
            errors=self.instance.errors(mean),
        )

    def outcome(
        self,
        *,
        simulated: bool,
        collisions: Collisions | None,
        machine: str = "",
        notes: list[str] | None = None,
    ) -> Outcome:
        """What came out of it."""
        return Outcome(
            problem=label(self.problem),
            settings=self.settings,
            simulated=simulated,
            edges=self.instance.edges,
            width=self.instance.width,
            sparsity=self.instance.sparsity,
            optimum=self.instance.optimum,
            epochs=self.epochs,
            x=self.x.mean(0),
            collisions=collisions,
            machine=machine,
            notes=notes or [],
        )


def no_watch(threads: int) -> Watch:
    """Nothing is noted."""
    nothing = np.zeros(0, np.int64)
    return Watch(
        on=False,
        last=nothing,
        collisions=np.zeros((threads, 0), np.int64),
        made=np.zeros((threads, 0), np.int64),
        counted=nothing,
        finished=np.zeros((threads, 8), np.int64),
        lag=np.zeros((threads, 2), np.int64),
    )


def shared_by_threads(vertices: int) -> Shared:
    """No lock is held, and it is the first one's turn."""
    return Shared(
        locks=np.zeros(vertices, np.int32),
        taken=np.zeros(1, np.int64),
        turn=np.zeros(1, np.int64),
        stop=np.zeros(1, np.int64),
    )


def go_through(instance: Instance, order: NDArray[np.int64], x: NDArray[Any], step: Any) -> None:
    """Train x (d,) by one thread, this one, on the edges of `order`."""
    rules = Rules(locked=NOTHING, atomic=False, delay_ns=0, most=instance.most, chunk=len(order))
    ring = ring_of(x[None, :0], 0)
    work(instance.costs, order, x, step, rules, shared_by_threads(0), no_watch(1), ring, 0)
