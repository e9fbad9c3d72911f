"""Training by any number of workers under virtual time."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .interleaving import Counts, Memory, Times, Workers, interleave
from .outcome import Collisions, Outcome
from .problem import Instance, SparseProblem
from .ring import go_round, ring_of
from .schemes import Settings, dealt, orders
from .training import Report, Training

WILDEST = 10.0
"""The largest jitter: of much more the exponential is infinite."""


@dataclass(frozen=True, kw_only=True)
class AccessTimes:
    """What a worker's accesses to x take, in seconds; nominal, of the order of a present core's.

    Args:
        read: of reading a vertex before the gradient.
        compute: of the gradient, for each vertex; its median.
        load: from an update's reading a vertex to its writing it; what others write to it in
            between is lost, unless adds are atomic.
        store: of writing it.
        transfer: beside a read, a load or a lock of a vertex that another worker wrote last, as
            that one's cache holds it; what of it is not hidden by fetching ahead.
        lock: of taking a lock that is free.
        handoff: beside the lock of all of x, or the turn, when another worker had it last.
        exchange: of a coordinate in an exchange of "hogwild++"; all are exchanged at one instant.
        jitter: standard deviation of the logarithm of a gradient's time.

    Raises:
        ValueError: if one of them is negative, or the jitter above 10.
    """

    read: float = 1e-9
    compute: float = 1e-9
    load: float = 1e-9
    store: float = 1e-9
    transfer: float = 2e-9
    lock: float = 2e-9
    handoff: float = 100e-9
    exchange: float = 0.5e-9
    jitter: float = 0.1

    def __post_init__(self) -> None:
        for times in dataclasses.fields(self):
            value = getattr(self, times.name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{times.name} is {value:g}; it must not be negative")
        if self.jitter > WILDEST:
            raise ValueError(f"jitter is {self.jitter:g}; it must be at most {WILDEST:g}")


def simulate(
    problem: SparseProblem,
    settings: Settings,
    times: AccessTimes | None = None,
    report: Report | None = None,
) -> Outcome:
    """Train a problem by simulated workers, each with a core of its own.

    A worker reads the vertices of its edge at distinct instants, computes, and then loads and
    stores them at distinct instants, while the others do the same; a block of coordinates is read
    or written at one instant. The same settings give the same result to the bit. Collisions are
    always noted, and lost updates are counted exactly.

    Args:
        problem: what to train.
        settings: scheme, number of workers and the rest.
        times: of accesses.
        report: called with the number of each epoch and the state after it.

    Raises:
        ValueError: in one line, if the problem's data is damaged, or it cannot be trained so.
        Diverged: x is not finite any more.
    """
    training = Training(problem, settings)
    instance, settings = training.instance, training.settings
    times = times or AccessTimes()
    workers = Interleaved(instance, settings, times, training.x)
    jitter = np.random.default_rng([settings.seed, 1])

    def epoch(step: Any, rng: np.random.Generator) -> float:
        shares = dealt(orders(instance.edges, settings, rng), settings)
        slower = np.exp(times.jitter * jitter.standard_normal(sum(map(len, shares))))
        return workers.epoch(step, shares, slower)

    training.run(epoch, report)
    met = None if settings.scheme == "averaging" else workers.collisions()
    return training.outcome(simulated=True, collisions=met)


class Interleaved:
    """Workers that share x, over any number of epochs, and what is noted of how they meet.

    Worker w has the x numbered w modulo their number.

    Args:
        instance: the problem with its data.
        settings: scheme, adds and delay; and hold, where x are exchanged.
        times: of accesses.
        x: the one or several (copies, d), contiguous; they are trained in place.
    """

    def __init__(
        self, instance: Instance, settings: Settings, times: AccessTimes, x: NDArray[Any]
    ) -> None:
        self.instance = instance
        self.x = x
        self.ring = ring_of(x, settings.hold or 0)
        self.exchanging = settings.scheme == "hogwild++" and len(x) > 1
        self.locked, self.atomic, _ = settings.rules
        fields = {name: getattr(times, name) for name in Times._fields if name != "delay"}
        # A whole number would have everything compiled anew.
        self.times = Times(*map(float, Times(**fields, delay=settings.delay)))
        self.memory = _memory(instance.vertices * len(x))
        self.lag = np.zeros(3, np.int64)

    def epoch(
        self, step: float, shares: list[NDArray[np.int64]], slower: NDArray[np.float64]
    ) -> float:
        """Go through the edges of all workers; returns the virtual seconds that it took.

        Args:
            step: gamma.
            shares: of each worker, its edges in their order.
            slower: of each edge, in the order of the shares, how much longer its gradient takes.
        """
        counts = Counts(
            finished=np.zeros(len(self.x), np.int64),
            turns=np.zeros(1, np.int64),
            waits=np.zeros(1, np.int64),
            holder=np.full(2, -1),
            lag=self.lag,
        )
        taken = interleave(
            self.instance.costs,
            self.x.reshape(-1),
            self.x.dtype.type(step),
            self.locked,
            self.atomic,
            self.times,
            self.memory,
            _workers(self.instance, shares, slower, len(self.x)),
            counts,
            self.ring,
            self.exchanging,
        )
        if self.exchanging:
            go_round(self.instance.costs, self.ring)
            taken += self.times.exchange * self.x.size
        return float(taken)

    def collisions(self) -> Collisions:
        """How they have met so far."""
        memory, lag = self.memory, self.lag

        def by_vertex(of_all: NDArray[np.int64]) -> NDArray[np.int64]:
            return of_all.reshape(len(self.x), -1).sum(0)

        return Collisions(
            updates=by_vertex(memory.stores),
            collided=by_vertex(memory.collided),
            lost=by_vertex(memory.stores - memory.kept),
            mean_lag=float(lag[0] / max(lag[2], 1)),
            max_lag=int(lag[1]),
        )


def _memory(vertices: int) -> Memory:
    def filled(value: int) -> NDArray[np.int64]:
        return np.full(vertices, value, np.int64)

    return Memory(
        stores=filled(0), collided=filled(0), kept=filled(0), writer=filled(-1), holder=filled(-1)
    )


def _workers(
    instance: Instance, shares: list[NDArray[np.int64]], slower: NDArray[np.float64], copies: int
) -> Workers:
    count = len(shares)
    starts = np.concatenate([[0], np.cumsum([len(share) for share in shares])]).astype(np.int64)
    vertices, kind = instance.most // instance.width, instance.start.dtype

    def zeros() -> NDArray[np.int64]:
        return np.zeros(count, np.int64)

    return Workers(
        order=np.concatenate(shares),
        starts=starts,
        slower=slower,
        place=starts[:-1].copy(),
        doing=zeros(),
        vertex=zeros(),
        seen=np.empty((count, instance.most), kind),
        change=np.empty((count, instance.most), kind),
        moves=np.zeros(count, np.bool_),
        stamps=np.empty((count, vertices), np.int64),
        register=np.empty((count, instance.width), kind),
        kept=zeros(),
        waits_for=np.full(count, -1),
        since=zeros(),
        before=zeros(),
        base=np.arange(count) % copies * instance.vertices,
        held=zeros(),
    )
