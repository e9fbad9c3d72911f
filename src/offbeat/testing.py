"""Conformance: what holds of every method, as checks that anyone can run on a method of their own.

    from offbeat.testing import check_method
    check_method(MyMethod(topology=Ring()))

Each check simulates small experiments and raises AssertionError with a text that says what does
not hold. `Ledger` follows a conserved quantity through a run, event by event.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .cluster import Cluster, ComputeTime, Constant, Exponential, Fault, Lognormal
from .experiment import Budget, Experiment
from .message import codec_of
from .method import Method
from .methods import SGD
from .methods.ad_psgd import ADPSGD, Difference
from .methods.sgp import PushSum, Share, StochasticGradientPush
from .node import Node
from .problems import LeastSquares
from .run import Run
from .runtime.simulated import Simulation
from .schedule import Cosine
from .trace import LOST


@dataclass(frozen=True, kw_only=True)
class Quadratic(LeastSquares):
    """Least squares without noise, its parameters in several tensors.

    Args:
        tensors: how many; between them they have `dimension` numbers.
    """

    dimension: int = 8
    samples: int = 64
    condition: float = 4.0
    batch_size: int = 4
    double: bool = True
    tensors: int = 4

    def model(self) -> nn.Module:
        return _LinearInParts(self.dimension, self.tensors, self.double)


class _LinearInParts(nn.Module):
    """Inputs (N, d) times the concatenation (d,) of all parameters: outputs (N,)."""

    def __init__(self, dimension: int, tensors: int, double: bool) -> None:
        super().__init__()
        start = torch.zeros(dimension, dtype=torch.float64 if double else torch.float32)
        self.parts = nn.ParameterList(nn.Parameter(p) for p in start.tensor_split(tensors))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ torch.cat(list(self.parts))


def small_experiment(
    method: Method,
    *,
    workers: int = 4,
    steps: int = 50,
    lr: float = 0.05,
    momentum: float = 0.0,
    **settings: Any,
) -> Experiment:
    """`steps` gradients a worker on `Quadratic`; `settings` are the experiment's own."""
    problem = settings.setdefault("problem", Quadratic())
    defaults: dict[str, Any] = {
        "cluster": Cluster(workers=workers),
        "optimizer": functools.partial(torch.optim.SGD, lr=lr, momentum=momentum),
        "budget": Budget(samples=steps * workers * problem.batch_size),
        "evaluator": "serial",
    }
    return Experiment(method=method, **(defaults | settings))


def simulated(experiment: Experiment) -> Run:
    """The run of an experiment that has to end well."""
    run = Simulation(experiment).run()
    assert run.error is None, run.error
    return run


def fingerprint(run: Run) -> str:
    """SHA-256 of all that happened in a run and of the model that came out of it."""
    digest = hashlib.sha256(run.trace.hash().encode())
    digest.update(run.vector.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# What holds of every method


def check_method(method: Method, *, workers: int = 4, lr: float = 0.05) -> None:
    """Every check below, for that many workers.

    Raises:
        AssertionError: the first of them that fails.
    """
    check_declarations(method)
    check_start(method, workers=workers)
    check_serial_equivalence(method)
    check_repeats(method, workers=workers)
    check_solves_quadratic(method, workers=workers, lr=lr)
    check_staleness(method, workers=workers)
    check_messages(method, workers=workers)
    check_agreement(method, workers=workers)
    check_loss_of_workers(method, workers=workers)


def check_declarations(method: Method) -> None:
    """The method is a frozen dataclass, and every class in `messages` is a message."""
    name = type(method).__name__
    assert "__dataclass_params__" in vars(type(method)), (
        f"{name} is no dataclass of its own; declare it with @dataclass(frozen=True, kw_only=True)"
    )
    assert dataclasses.replace(method) == method, f"a copy of {method!r} is not equal to it"
    for message_type in method.messages:
        codec_of(message_type)
    for role in method.background:
        assert hasattr(method, role), f"{name}.background names {role!r}, which is not defined"


def check_start(method: Method, *, workers: int = 4) -> None:
    """Before the first step, the model that the nodes stand for is the common start."""
    start = torch.linspace(-1, 1, Quadratic().dimension, dtype=torch.float64)
    simulation = Simulation(small_experiment(method, workers=workers))
    for rank in range(workers + method.server_count):
        simulation._place(rank, start)
    model = method.model(simulation.nodes)
    assert model.shape == start.shape, (
        f"{type(method).__name__}.model returned shape {tuple(model.shape)} for parameters of "
        f"shape {tuple(start.shape)}"
    )
    assert torch.allclose(model, start, rtol=0, atol=1e-12), (
        f"{type(method).__name__}.model returned {model.tolist()} when every node began at "
        f"{start.tolist()}"
    )


def check_serial_equivalence(method: Method) -> None:
    """Under its `serial` settings one worker without latency is serial SGD, to the bit.

    Momentum and a learning-rate schedule are on, so that both must be in step as well.
    """
    alone = dataclasses.replace(method, **type(method).serial)
    total = 30 * Quadratic().batch_size
    settings: dict[str, Any] = {
        "cluster": Cluster(workers=1, latency=0.0, bandwidth=float("inf")),
        "schedule": Cosine(total=total, warmup=total // 5),
    }
    expected = simulated(small_experiment(SGD(), workers=1, steps=30, momentum=0.9, **settings))
    run = simulated(small_experiment(alone, workers=1, steps=30, momentum=0.9, **settings))
    distance = (run.vector - expected.vector).abs().max().item()
    assert torch.equal(run.vector, expected.vector), (
        f"{alone!r} on one worker is not serial SGD: after 30 steps the parameters differ by up "
        f"to {distance:.3g}"
    )


def check_repeats(method: Method, *, workers: int = 4) -> None:
    """The same experiment gives the same run, to the bit, and another seed another one."""
    first, second, other = (
        simulated(small_experiment(method, workers=workers, steps=20, seed=seed))
        for seed in (0, 0, 1)
    )
    name = type(method).__name__
    assert first.trace.gradients[["node", "end_ns"]].tolist() == (
        second.trace.gradients[["node", "end_ns"]].tolist()
    ), (
        f"two simulations of {name} with the same seed differ in what happened when; use "
        "node.rng for random choices, and neither sets nor clocks to decide an order"
    )
    assert fingerprint(first) == fingerprint(second), (
        f"two simulations of {name} with the same seed computed different numbers; keep what "
        "changes in node.state(...), and use node.rng for random choices"
    )
    assert fingerprint(other) != fingerprint(first), (
        f"two simulations of {name} with different seeds are equal"
    )


def check_solves_quadratic(method: Method, *, workers: int = 4, lr: float = 0.05) -> None:
    """The loss of a quadratic without noise falls to a thousandth of what it was."""
    run = simulated(small_experiment(method, workers=workers, steps=400, lr=lr))
    before, after = run.metrics[0].loss, run.metrics[-1].loss
    assert after < before / 1000, (
        f"{type(method).__name__} took the loss of a quadratic from {before:.3g} only to "
        f"{after:.3g} in 400 steps of each worker at learning rate {lr:g}"
    )


def check_staleness(method: Method, *, workers: int = 4) -> None:
    """Every gradient was taken at a version that there had been."""
    steps = simulated(small_experiment(method, workers=workers)).trace.steps
    name = type(method).__name__
    assert len(steps), f"{name} applied no gradient; call node.apply(gradient.vector, taken_at=...)"
    for row in steps:
        staleness, version = int(row["staleness"]), int(row["version"])
        assert 0 <= staleness <= version, (
            f"{name} on node {row['node']} applied a gradient to version {version} as taken at "
            f"version {version - staleness}; pass the version that came with the gradient"
        )


def check_messages(method: Method, *, workers: int = 4) -> None:
    """All messages are of declared types, and all are read: none pile up in a mailbox.

    A role that the end of the run has stopped may leave one message of each kind and sender.
    """
    simulation = Simulation(small_experiment(method, workers=workers))
    name = type(method).__name__
    run = simulation.run()
    assert run.error is None, run.error
    declared = {message_type.__name__ for message_type in method.messages}
    # What wraps another method sends that one's messages too, and collectives have their own.
    inner = [v for v in vars(method).values() if isinstance(v, Method)]
    declared |= {t.__name__ for m in inner for t in m.messages} | {"all_reduce", "Chunk"}
    for kind in run.trace.kinds:
        assert kind in declared, f"{name} sent a {kind}, which {name}.messages does not list"
    assert not (run.trace.messages["outcome"] == LOST).any(), (
        f"messages of {name} were lost although no node departed"
    )
    unread = Counter(
        (source, to, type(message).__name__) for source, to, message in simulation.in_flight
    )
    for (source, to, kind), count in unread.items():
        assert count <= 1, (
            f"{name} left {count} messages {kind} from node {source} unread on node {to}"
        )


def check_agreement(method: Method, *, workers: int = 4) -> None:
    """After a round for which `agreed` says so, all workers hold the same parameters."""
    if not method.synchronous:
        return
    last = next((round for round in range(10, 40) if method.agreed(round)), None)
    if last is None:
        return
    simulation = Simulation(small_experiment(method, workers=workers, steps=last + 1))
    run = simulation.run()
    assert run.error is None, run.error
    first, *others = [node for node in simulation.nodes if not node.is_server]
    for node in others:
        assert torch.equal(first.parameters, node.parameters), (
            f"{type(method).__name__}.agreed({last}) is True, yet after that round workers "
            f"{first.rank} and {node.rank} hold different parameters"
        )


def check_loss_of_workers(method: Method, *, workers: int = 4) -> None:
    """When workers crash and leave, the others go on, or the run ends with an error.

    Where `survives_loss` they have to go on, and a late worker is let in.
    """
    name = type(method).__name__
    if workers < 4:
        return
    crash = Fault(kind="crash", rank=1, at=0.1)
    faults = (crash,)
    if method.survives_loss:
        faults = (
            Fault(kind="join", rank=3, at=0.05),
            crash,
            Fault(kind="slow", rank=0, at=0.12, factor=2.0, until=0.2),
            Fault(kind="leave", rank=2, at=0.15),
        )
    cluster = Cluster(workers=workers, faults=faults)
    run = Simulation(
        small_experiment(method, workers=workers, cluster=cluster, budget=Budget(seconds=0.5))
    ).run()
    if run.error is not None:
        assert not method.survives_loss, f"{name}.survives_loss is True, but: {run.error}"
        return
    gradients = run.trace.gradients
    for rank in range(workers):
        ended = gradients["end_ns"][gradients["node"] == rank] / 1e9
        assert len(ended), f"{name}: worker {rank} computed nothing"
        if rank in {fault.rank for fault in faults if fault.kind in ("crash", "leave")}:
            assert ended.max() < 0.4, f"{name}: worker {rank} goes on after it has departed"
        else:
            assert ended.max() > 0.4, (
                f"{name}: worker {rank} stood still from {ended.max():.3g} s on, after worker 1 "
                "had crashed at 0.1 s; let PeerLost end the run, or go on without the worker"
            )


# Conserved quantities


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """A quantity that messages carry from node to node, and only `Node.apply` creates.

        held by live nodes + in flight or unread + lost = start + joined + applied

    Args:
        held: what a node has of it (k,).
        carried: what a message has of it (k,), or None if nothing.
    """

    held: Callable[[Node], Tensor]
    carried: Callable[[Any], Tensor | None]


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
    """A simulation of `Quadratic` in which every worker starts elsewhere."""
    experiment = small_experiment(
        method, workers=cluster.workers, steps=steps, lr=0.1, seed=seed, cluster=cluster
    )
    generator = torch.Generator().manual_seed(seed)
    shape = (cluster.workers, Quadratic().dimension)
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


def _push_sum_carried(message: Any) -> Tensor | None:
    if not isinstance(message, Share):
        return None
    return torch.cat([message.parameters, message.parameters.new_tensor([message.weight])])


def _push_sum_held(node: Node) -> Tensor:
    weight = node.parameters.new_tensor([node.state(PushSum).weight])
    return torch.cat([node.parameters, weight])


LEDGERS: dict[type[Method], Ledger] = {
    # Both the sum of x and the sum of w, which is n + joined.
    StochasticGradientPush: Ledger(held=_push_sum_held, carried=_push_sum_carried),
    ADPSGD: Ledger(
        held=lambda node: node.parameters,
        carried=lambda message: message.delta if isinstance(message, Difference) else None,
    ),
}
"""What the package's own methods conserve."""
