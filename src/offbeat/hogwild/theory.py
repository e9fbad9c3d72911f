"""The paper's step size and number of updates, as functions of the hypergraph.

Source: Niu et al., "HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient Descent",
NIPS 2011, proposition 4.1 and section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .hypergraph import Sparsity


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the proposition asks of a problem and a run.

    Args:
        convexity: c, the modulus of strong convexity of f.
        smoothness: L, the Lipschitz constant of f's gradient.
        gradient: M, the largest norm of the gradient of |E| times an edge's part of f.
        lag: tau, updates that others make at most while one is computed.
        sparsity: Omega, Delta and rho.

    Raises:
        ValueError: if one of them is out of range.
    """

    convexity: float
    smoothness: float
    gradient: float
    lag: float
    sparsity: Sparsity

    def __post_init__(self) -> None:
        for name in ("convexity", "smoothness", "gradient"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value:g}; it must be positive and finite")
        if self.convexity > self.smoothness:
            raise ValueError(
                f"convexity {self.convexity:g} is more than smoothness {self.smoothness:g}; "
                "no function is such"
            )
        if not self.lag >= 0:
            raise ValueError(f"lag is {self.lag:g}; it must not be negative")


def step_size(conditions: Conditions, error: float, theta: float = 1.0) -> float:
    """gamma = theta eps c / (2 L M^2 Omega (1 + 6 rho tau + 4 tau^2 Omega Delta^(1/2))).

    Args:
        conditions: of the problem and the run.
        error: eps, of the expected f(x) - f* that is asked for.
        theta: share of the largest step, in (0, 1].

    Raises:
        ValueError: if the error or theta is out of range.
    """
    _check(error, theta)
    c, s, tau = conditions, conditions.sparsity, conditions.lag
    interference = 1 + 6 * s.rho * tau + 4 * tau**2 * s.omega * math.sqrt(s.delta)
    return theta * error * c.convexity / (2 * c.smoothness * c.gradient**2 * s.omega * interference)


def updates(conditions: Conditions, error: float, distance: float, theta: float = 1.0) -> int:
    """After so many updates with that step size the expected f(x) - f* is at most eps.

    k = 2 L M^2 Omega (1 + 6 tau rho + 6 tau^2 Omega Delta^(1/2)) log(L D_0 / eps) /
    (c^2 theta eps), rounded up. An update is of one random coordinate of a random edge.

    Args:
        conditions: of the problem and the run.
        error: eps.
        distance: D_0, the squared distance of the start from the optimum.
        theta: as in `step_size`.

    Raises:
        ValueError: if the error, theta or the distance is out of range.
    """
    _check(error, theta)
    if not distance > 0:
        raise ValueError(f"distance is {distance:g}; it must be positive")
    c, s, tau = conditions, conditions.sparsity, conditions.lag
    interference = 1 + 6 * tau * s.rho + 6 * tau**2 * s.omega * math.sqrt(s.delta)
    scale = 2 * c.smoothness * c.gradient**2 * s.omega * interference
    ratio = max(1.0, c.smoothness * distance / error)
    return math.ceil(scale * math.log(ratio) / (c.convexity**2 * theta * error))


def _check(error: float, theta: float) -> None:
    if not (error > 0 and math.isfinite(error)):
        raise ValueError(f"error is {error:g}; it must be positive and finite")
    if not 0 < theta <= 1:
        raise ValueError(f"theta is {theta:g}; it must be in (0, 1]")
