"""Conserved quantities, followed event by event."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cluster import Cluster, ComputeTime, Constant, Exponential, Fault, Lognormal
from ..experiment import Experiment
from ..ledger import Ledger
from ..method import Method
from ..node import Node
from ..runtime.simulated import Simulation
from .experiments import Quadratic, small_experiment


class AuditedSimulation(Simulation):
    """A simulation that balances a ledger after every event.

    Its terms, each (k,), are `live()`, `in_flight_total()`, `lost()`, and `entered` (what nodes
    began or joined with) and `applied` (what their optimizer steps changed).

    Args:
        tolerance: for rounding, relative to the terms.

    Raises:
        AssertionError: the ledger does not balance; the text has all terms.
    """

    def __init__(
        self,
        experiment: Experiment,
        ledger: Ledger,
        initial: Callable[[int], Tensor] | None = None,
        tolerance: float = 1e-12,
    ) -> None:
        super().__init__(experiment, initial=initial)
        self.ledger = ledger
        self.tolerance = tolerance
        self.entered: Tensor | float = 0.0
        self.applied: Tensor | float = 0.0
        self.departed_with: Tensor | float = 0.0
        self.on_departure = self._depart_with
        self.checks = 0

    def step(self) -> bool:
        more = super().step()
        self.balance()
        return more

    def balance(self) -> None:
        live, carried, lost = self.live(), self.in_flight_total(), self.lost()
        terms = (live, carried, lost, self.entered, self.applied)
        difference = torch.as_tensor(live + carried + lost - self.entered - self.applied)
        rounding = self.tolerance * (1 + sum(abs(term) for term in terms))
        self.checks += 1
        assert (difference.abs() < rounding).all(), (
            f"the ledger of {type(self.method).__name__} is out by {difference.tolist()} after "
            f"{self.clock.now} ns: live {live}, in flight {carried}, lost {lost}, entered "
            f"{self.entered}, applied {self.applied}"
        )

    def live(self) -> Tensor | float:
        return sum((self.ledger.held(node) for node in self.nodes), start=0.0)

    def in_flight_total(self) -> Tensor | float:
        return self._carried(self.in_flight)

    def lost(self) -> Tensor | float:
        return self.departed_with + self._carried(self.lost_messages)

    def _carried(self, messages: list[tuple[int, int, Any]]) -> Tensor | float:
        total: Tensor | float = 0.0
        for _, _, message in messages:
            amount = self.ledger.carried(message)
            if amount is not None:
                total = total + amount
        return total

    def _place(self, rank: int, start: Tensor) -> Node:
        node = super()._place(rank, start)
        self.entered = self.entered + self.ledger.held(node)
        apply = node.apply

        def applying(*arguments: Any, **settings: Any) -> None:
            before = self.ledger.held(node).clone()
            apply(*arguments, **settings)
            self.applied = self.applied + (self.ledger.held(node) - before)

        node.apply = applying
        return node

    def _depart_with(self, node: Node) -> None:
        self.departed_with = self.departed_with + self.ledger.held(node).clone()


def check_ledger(
    method: Method, ledger: Ledger, *, workers: int = 4, schedules: int = 10, first: int = 0
) -> None:
    """The ledger balances after every event of random schedules, with faults if survived."""
    for seed in range(first, first + schedules):
        cluster = random_cluster(seed, workers, faults=method.survives_loss)
        simulation = audited(method, ledger, cluster, seed=seed)
        run = simulation.run()
        assert run.error is None, f"schedule {seed}: {run.error}"


def audited(
    method: Method, ledger: Ledger, cluster: Cluster, *, seed: int = 0, steps: int = 12
) -> AuditedSimulation:
    """A simulation of `Quadratic` in which every node starts elsewhere."""
    experiment = small_experiment(
        method, workers=cluster.workers, steps=steps, lr=0.1, seed=seed, cluster=cluster
    )
    generator = torch.Generator().manual_seed(seed)
    shape = (cluster.workers + method.server_count, Quadratic().dimension)
    starts = torch.randn(shape, generator=generator, dtype=torch.float64)
    return AuditedSimulation(experiment, ledger, initial=lambda rank: starts[rank])


def random_cluster(seed: int, workers: int, *, faults: bool = True) -> Cluster:
    """Random speeds, links and, on all workers but the first, faults in the first 0.1 s."""
    rng = random.Random(seed)
    compute: ComputeTime = rng.choice([Constant(), Lognormal(sigma=0.5), Exponential()])
    plan: list[Fault] = []
    for rank in range(1, workers):
        kind = rng.choice(["crash", "leave", "join", "slow", None, None])
        at = rng.uniform(0, 0.1)
        if not faults or kind is None:
            continue
        if kind == "slow":
            plan.append(Fault(kind="slow", rank=rank, at=at, factor=rng.uniform(1, 10)))
        elif kind == "join":
            plan.append(Fault(kind="join", rank=rank, at=at))
            if rng.random() < 0.5:
                plan.append(Fault(kind="crash", rank=rank, at=at + rng.uniform(0.01, 0.05)))
        else:
            plan.append(Fault(kind=kind, rank=rank, at=at))  # pyright: ignore[reportArgumentType]
    return Cluster(
        workers=workers,
        compute=compute,
        slow={rank: rng.uniform(1, 4) for rank in range(workers) if rng.random() < 0.3},
        latency=rng.choice([0.0, 10 ** rng.uniform(-5, -1.5)]),
        bandwidth=rng.choice([float("inf"), 10 ** rng.uniform(3.5, 7)]),
        collectives=rng.choice(["priced", "messages"]),
        faults=tuple(plan),
    )
