"""Cluster: a description, pure data, of workers' speeds, links and faults."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray


class ComputeTime(ABC):
    """How long one minibatch gradient takes, in seconds."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """That many independent times, in seconds."""


def _require_positive(what: str, value: float) -> None:
    if not value > 0 or not np.isfinite(value):
        raise ValueError(f"{what} is {value:g}; it must be a positive number")


@dataclass(frozen=True, kw_only=True)
class Constant(ComputeTime):
    """Every gradient takes `seconds`."""

    seconds: float = 0.01

    def __post_init__(self) -> None:
        _require_positive("compute.seconds", self.seconds)

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        return np.full(count, self.seconds)


@dataclass(frozen=True, kw_only=True)
class Lognormal(ComputeTime):
    """Lognormal with mean `seconds`; `sigma` is the standard deviation of the logarithm."""

    seconds: float = 0.01
    sigma: float = 0.2

    def __post_init__(self) -> None:
        _require_positive("compute.seconds", self.seconds)
        if not self.sigma >= 0:
            raise ValueError(f"compute.sigma is {self.sigma:g}; it must not be negative")

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        mu = np.log(self.seconds) - self.sigma**2 / 2
        return rng.lognormal(mu, self.sigma, count)


@dataclass(frozen=True, kw_only=True)
class Exponential(ComputeTime):
    """Exponential with mean `seconds`."""

    seconds: float = 0.01

    def __post_init__(self) -> None:
        _require_positive("compute.seconds", self.seconds)

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        return rng.exponential(self.seconds, count)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that befalls node `rank` at `at` seconds.

    Args:
        kind: crash (at once, with what it holds), leave (at its next round), join (absent
            before `at`), slow (its gradients take `factor` times as long from `at` to `until`).
        rank: the node; workers come first, servers after them.
        at: seconds since the run began.
        factor: only for slow.
        until: only for slow, seconds since the run began.
    """

    kind: Literal["crash", "leave", "join", "slow"]
    rank: int
    at: float
    factor: float = 1.0
    until: float = float("inf")

    def __post_init__(self) -> None:
        if self.kind not in ("crash", "leave", "join", "slow"):
            raise ValueError(
                f"fault of node {self.rank}: kind {self.kind!r} is none of crash, leave, join, slow"
            )
        if not self.at >= 0:
            raise ValueError(f"fault {self.kind} of node {self.rank}: at is {self.at:g} seconds")
        if self.kind == "slow":
            _require_positive(f"fault slow of node {self.rank}: factor", self.factor)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines and network.

    Args:
        workers: how many workers there ever are; servers are further nodes, unless colocated.
        compute: seconds that one gradient takes on a worker of ordinary speed.
        slow: worker -> how many times longer its gradients take.
        latency: of every link, in seconds.
        bandwidth: of every host's outgoing and incoming side, in bytes per second.
        collectives: "priced" computes a collective's timing in closed form when all have joined
            it; "messages" passes every one of its messages (the same times, more slowly).
        faults: what goes wrong, and when.
    """

    workers: int = 16
    compute: ComputeTime = Lognormal()
    slow: dict[int, float] = field(default_factory=dict[int, float])
    latency: float = 1e-4
    bandwidth: float = 125e6
    collectives: Literal["priced", "messages"] = "priced"
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"cluster.workers is {self.workers}; it must be at least 1")
        if not self.latency >= 0 or not np.isfinite(self.latency):
            raise ValueError(f"cluster.latency is {self.latency:g} s; it must not be negative")
        if not self.bandwidth > 0:
            raise ValueError(
                f"cluster.bandwidth is {self.bandwidth:g} bytes/s; it must be positive "
                "(.inf for a network without cost)"
            )
        for rank, factor in self.slow.items():
            if not 0 <= rank < self.workers:
                raise ValueError(f"cluster.slow names worker {rank} of {self.workers}")
            _require_positive(f"cluster.slow of worker {rank}", factor)
        if all(self.joins_at(rank) > 0 for rank in range(self.workers)):
            raise ValueError("cluster.faults lets every worker join late; one must be there")

    def joins_at(self, rank: int) -> float:
        """When that node is there, in seconds."""
        return max((f.at for f in self.faults if f.kind == "join" and f.rank == rank), default=0.0)

    def compute_times(self, rank: int, seed: int) -> Iterator[float]:
        """The seconds of each of that worker's gradients in turn, slow-downs by fault left out."""
        rng = np.random.default_rng([seed, rank, 0x7157])
        factor = self.slow.get(rank, 1.0)
        while True:
            yield from (self.compute.sample(rng, 256) * factor).tolist()
