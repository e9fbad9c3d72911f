"""How threads share x, and the settings of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .loops import EDGE, NOTHING, TURNS, VECTOR

Scheme = Literal[
    "serial", "hogwild", "hogwild++", "locked", "round-robin", "vector-lock", "averaging"
]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
ABOUT: dict[Scheme, str] = {
    "serial": "one thread",
    "hogwild": "no locks",
    "hogwild++": "no locks; clusters of threads have an x each, and exchange changes around a ring",
    "locked": "locks all vertices of an edge around its update (AIG)",
    "round-robin": "threads update in turn, one after the other (RR)",
    "vector-lock": "one lock on all of x around an update",
    "averaging": "every thread trains an x of its own on all edges; the mean counts",
}
LOCKED: dict[Scheme, int] = {
    "serial": NOTHING,
    "hogwild": NOTHING,
    "hogwild++": NOTHING,
    "locked": EDGE,
    "round-robin": TURNS,
    "vector-lock": VECTOR,
    "averaging": NOTHING,
}
UNWATCHED: tuple[Scheme, ...] = ("hogwild++", "averaging")
"""Threads under these share no one x."""
Adds = Literal["plain", "atomic"]
MOST_CLUSTERS = 4
"""Of "hogwild++", if their number is not given."""
LONGEST = 3600.0
"""Seconds of waiting after a gradient that are allowed."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a problem with separable costs is trained.

    In every epoch each edge is taken once, in a new random order of blocks; workers take the next
    ones as they go, simulated ones in turn, and at the end they wait for each other. The step is
    the same within an epoch.

    Args:
        scheme: what is locked around an update.
        workers: threads, or simulated ones; "serial" has one.
        epochs: how often each edge is taken.
        step: gamma, of the first epoch; None for the problem's own.
        decay: what the step is multiplied by after each epoch.
        adds: "plain": a coordinate is read, and then written, so that what others write to it in
            between is lost; "atomic": it is added to in one indivisible operation, as in the paper.
        delay: seconds that are waited after every gradient.
        block: edges that lie side by side and stay together in the order of an epoch. With 1 the
            order is random altogether, which takes up to twice as long where the data does not fit
            into the cache.
        clusters: how many x there are for "hogwild++", each of which some workers share. None for
            one for each worker, or 4 if those are more: of many, the changes add up to too much.
        hold: tau_0 of "hogwild++": edges that a cluster goes through from an exchange until it
            passes the token on. None for as many as keep exchanges cheap, and at least 64.
        seed: of the orders.
        watch: note collisions, lost updates and the lag; on threads this costs time.

    Raises:
        ValueError: if a field is out of range.

    Reference: Niu et al., "HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient
    Descent", NIPS 2011, algorithm 1 and section 7; Langford, Smola, Zinkevich, "Slow Learners are
    Fast", NIPS 2009; Zinkevich et al., "Parallelized Stochastic Gradient Descent", NIPS 2010;
    Zhang, Hsieh, Akella, "HogWild++: A New Mechanism for Decentralized Asynchronous Stochastic
    Gradient Descent", ICDM 2016.
    """

    scheme: Scheme = "hogwild"
    workers: int = 2
    epochs: int = 20
    step: float | None = None
    decay: float = 0.9
    adds: Adds = "plain"
    delay: float = 0.0
    block: int = 8
    clusters: int | None = None
    hold: int | None = None
    seed: int = 0
    watch: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"there is no scheme {self.scheme}; there are {', '.join(SCHEMES)}")
        for name in ("workers", "epochs", "block", "clusters", "hold"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        too_many = self.clusters is not None and self.clusters > self.workers
        if self.scheme == "hogwild++" and too_many:
            raise ValueError(f"{self.clusters} clusters of {self.workers} workers: choose fewer")
        if self.scheme == "serial" and self.workers != 1:
            raise ValueError(f"serial with {self.workers} workers; it has one")
        if self.step is not None and not (self.step > 0 and math.isfinite(self.step)):
            raise ValueError(f"step is {self.step:g}; it must be positive and finite")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay is {self.decay:g}; it must be above 0 and at most 1")
        if not 0 <= self.delay <= LONGEST:
            raise ValueError(f"delay is {self.delay:g} seconds; it must be from 0 to {LONGEST:g}")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be at least 0")
        if self.adds not in get_args(Adds):
            raise ValueError(f"adds is {self.adds!r}; it must be plain or atomic")
        if self.watch and self.scheme in UNWATCHED:
            raise ValueError(f"{self.scheme} has several x: there is nothing to watch")

    @property
    def copies(self) -> int:
        """How many x there are."""
        if self.scheme == "hogwild++":
            return self.clusters or min(self.workers, MOST_CLUSTERS)
        return self.workers if self.scheme == "averaging" else 1

    @property
    def rules(self) -> tuple[int, bool, int]:
        """What is locked, whether adds are atomic, and the delay in nanoseconds."""
        return LOCKED[self.scheme], self.adds == "atomic", round(self.delay * 1e9)


def orders(edges: int, settings: Settings, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Of one epoch, the order of all edges; "averaging" has one for each worker."""
    count = settings.workers if settings.scheme == "averaging" else 1
    return [_order(edges, settings.block, rng) for _ in range(count)]


def _order(edges: int, block: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Blocks of edges that lie side by side, in random order."""
    block = min(block, edges)
    begins = block * rng.permutation(-(-edges // block))
    order = (begins[:, None] + np.arange(block)).ravel()
    return order if edges % block == 0 else order[order < edges]


def dealt(found: list[NDArray[np.int64]], settings: Settings) -> list[NDArray[np.int64]]:
    """What `orders` found as the edges of each worker; those of a block stay together.

    In turns every n-th edge is a worker's.
    """
    workers = settings.workers
    if settings.scheme == "averaging" or workers == 1:
        return found
    (order,) = found
    block = 1 if settings.scheme == "round-robin" else min(settings.block, len(order))
    owner = np.arange(len(order)) // block % workers
    return [order[owner == k] for k in range(workers)]
