"""HogWild++: clusters of workers with an x each, between which a token goes around.

A core that writes to a cache line takes it from all others, so that workers that share x wait for
each other's lines even where they never touch the same coordinate. Here workers share x with their
cluster only. The cluster that holds the token exchanges what it has changed with the next one on
the ring, works on for a while, and passes the token on.

Differences: at the end of an epoch, where all wait for each other, every cluster makes an exchange,
and what counts is the mean of all x. Changes are exchanged however small they are.
Reference: Zhang, Hsieh, Akella, "HogWild++: A New Mechanism for Decentralized Asynchronous
Stochastic Gradient Descent", ICDM 2016.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from .compiling import compiled
from .costs import update, width

LEAST_HOLD = 64
"""Edges; what the authors of the paper recommend for few clusters."""
WORK = 8.0
"""Coordinates that all clusters together update, for each that an exchange goes through."""


class Ring(NamedTuple):
    x: NDArray[Any]  # (clusters, d)
    snapshots: NDArray[Any]  # (clusters, d) what of each has been exchanged
    token: NDArray[np.int64]  # (1,) the cluster that holds it
    share: Any
    """beta: how much of a cluster's change goes into its own x and into the next one's."""
    mixing: Any
    """lambda: how far a cluster's x goes towards the next one's."""
    hold: int
    """tau_0: edges that a cluster goes through after an exchange, before it passes the token on."""


def shares(clusters: int) -> tuple[float, float]:
    """beta and lambda: beta + beta^n = 1, lambda = 1 - beta^(n - 1)."""
    if clusters < 2:
        return 1.0, 0.0
    beta: Any = brentq(lambda beta: beta + beta**clusters - 1, 0.5, 1.0)
    return float(beta), float(1 - beta ** (clusters - 1))


def ring_of(x: NDArray[Any], hold: int) -> Ring:
    """The ring of clusters whose x (clusters, d) are all the same so far."""
    beta, mixing = map(x.dtype.type, shares(len(x)))
    return Ring(
        x=x,
        snapshots=x.copy(),
        token=np.zeros(1, np.int64),
        share=beta,
        mixing=mixing,
        hold=hold,
    )


def default_hold(coordinates: int, touched: float, clusters: int) -> int:
    """Edges from an exchange until the token is passed on, such that exchanges cost little.

    Args:
        coordinates: of x, through all of which an exchange goes.
        touched: by an edge, on average.
        clusters: that work meanwhile.
    """
    return max(LEAST_HOLD, math.ceil(WORK * coordinates / touched / clusters))


@compiled
def go_round(costs: Any, ring: Any) -> None:
    """One exchange of each cluster, when all workers have come to the end of an epoch."""
    for cluster in range(len(ring.x)):
        exchange(costs, ring, cluster)


@compiled
def exchange(costs: Any, ring: Any, cluster: int) -> None:
    """Let the next cluster have what this one has changed, and take of what that one has.

        change <- x_i - snapshot_i
        x_i, x_j <- lambda x_j + (1 - lambda) snapshot_i + beta change, x_j + beta change
        snapshot_i <- x_i

    with i and j the cluster and the next one, which goes on meanwhile.
    """
    mine, old = ring.x[cluster], ring.snapshots[cluster]
    following = ring.x[(cluster + 1) % len(ring.x)]
    beta, mixing, wide = ring.share, ring.mixing, width(costs)
    if wide == 1:
        for k in range(len(mine)):
            change, there = beta * (mine[k] - old[k]), following[k]
            following[k] = there + change
            old[k] = mixing * there + (1 - mixing) * old[k] + change
            mine[k] = old[k]
        return
    # Blocks of coordinates are updated as costs have it: some are projected.
    change, still = np.empty(wide, mine.dtype), np.zeros(wide, mine.dtype)
    for first in range(0, len(mine), wide):
        for k in range(wide):
            change[k] = beta * (mine[first + k] - old[first + k])
            there = following[first + k]
            mine[first + k] = mixing * there + (1 - mixing) * old[first + k] + change[k]
        update(costs, following, first, change, 0, -1)
        update(costs, mine, first, still, 0, 0)
        for k in range(wide):
            old[first + k] = mine[first + k]
