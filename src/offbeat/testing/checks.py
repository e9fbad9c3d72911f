"""What holds of every method."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import torch

from ..cluster import Cluster, Exponential, Fault
from ..experiment import Budget
from ..messages import codec_of
from ..method import Method
from ..methods import SGD
from ..runtime.simulated import Simulation
from ..schedule import Cosine
from ..trace import LOST
from .audit import check_ledger
from .experiments import Quadratic, fingerprint, simulated, small_experiment


def check_method(method: Method, *, workers: int = 4, lr: float = 0.1) -> None:
    """Every check below, for that many workers.

    Raises:
        AssertionError: the first of them that fails.
    """
    if isinstance(method, type):
        raise AssertionError(f"check_method wants an instance: check_method({method.__name__}())")
    check_declarations(method)
    check_start(method, workers=workers)
    check_serial_equivalence(method)
    check_repeats(method, workers=workers)
    check_solves_quadratic(method, workers=workers, lr=lr)
    check_staleness(method, workers=workers)
    check_messages(method, workers=workers)
    check_agreement(method, workers=workers)
    check_loss_of_workers(method, workers=workers)
    check_conservation(method, workers=workers)


def check_declarations(method: Method) -> None:
    """The method is a frozen dataclass, and what it declares is there and fits together."""
    name = type(method).__name__
    assert "__dataclass_params__" in vars(type(method)), (
        f"{name} is no dataclass of its own; declare it with @dataclass(frozen=True, kw_only=True)"
    )
    assert dataclasses.replace(method) == method, f"a copy of {method!r} is not equal to it"
    for message_type in method.messages:
        codec_of(message_type)
    for role in method.background:
        assert hasattr(method, role), f"{name}.background names {role!r}, which is not defined"
    if method.shares_parameters:
        assert method.ledger is None, (
            f"{name} declares a ledger, but parameters that are shared without locks conserve "
            "nothing; drop one of the two"
        )
        assert not method.server_count, (
            f"{name} declares servers, but parameters that all workers share need none; drop one "
            "of the two"
        )


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
    """Under its `serial` settings, if there are any, one worker without latency is serial SGD.

    To the bit; momentum and a learning-rate schedule are on, so that both must be in step as well.
    """
    serial = type(method).serial
    if serial is None:
        return
    alone = dataclasses.replace(method, **serial)
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
        f"to {distance:.3g}; declare `serial` as the settings under which it is, such as "
        "{'beta': 0.0}, or as None"
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


def check_solves_quadratic(method: Method, *, workers: int = 4, lr: float = 0.1) -> None:
    """The loss of a quadratic without noise falls to a thousandth of what it was."""
    run = simulated(small_experiment(method, workers=workers, steps=200, lr=lr))
    before, after = run.metrics[0].loss, run.metrics[-1].loss
    assert after < before / 1000, (
        f"{type(method).__name__} took the loss of a quadratic from {before:.3g} only to "
        f"{after:.3g} in 200 steps of each worker at learning rate {lr:g}"
    )


def check_staleness(method: Method, *, workers: int = 4) -> None:
    """Every gradient was taken at a version that there had been, within the declared bound."""
    slow = Cluster(workers=workers, compute=Exponential(), slow={workers - 1: 8.0})
    steps = simulated(small_experiment(method, workers=workers, cluster=slow)).trace.steps
    bound = method.staleness_bound(workers)
    name = type(method).__name__
    assert len(steps), f"{name} applied no gradient; call node.apply(gradient)"
    for row in steps:
        staleness, version = int(row["staleness"]), int(row["version"])
        assert 0 <= staleness <= version, (
            f"{name} on node {row['node']} applied a gradient to version {version} as taken at "
            f"version {version - staleness}; pass the version that came with the gradient"
        )
        assert bound is None or staleness <= bound, (
            f"{name} on node {row['node']} applied a gradient that had missed {staleness} steps; "
            f"its staleness_bound({workers}) is {bound}"
        )


def check_messages(method: Method, *, workers: int = 4) -> None:
    """All messages are of declared types, and all are read: none pile up in a mailbox.

    A role that the end of the run has stopped may leave one message of each kind and sender. Where
    more are left, as by overlaps, a run eight times as long must not leave many times as many.
    """
    steps = 50
    simulation = Simulation(small_experiment(method, workers=workers, steps=steps))
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
    unread = _unread(simulation)
    if max(unread.values(), default=0) <= 1:
        return
    longer = Simulation(small_experiment(method, workers=workers, steps=8 * steps))
    longer.run()
    later = _unread(longer)
    for (source, to, kind), count in unread.items():
        kept, grown = (sum(n for k, n in left.items() if k[2] == kind) for left in (unread, later))
        assert count <= 1 or grown <= 4 * kept, (
            f"{name} left {count} messages {kind} from node {source} unread on node {to}; in a run "
            f"8 times as long {grown:,} pile up on all nodes, not {kept:,}"
        )


def _unread(simulation: Simulation) -> Counter[tuple[int, int, str]]:
    """Messages left at the end, by sender, receiver and kind."""
    return Counter((source, to, type(left).__name__) for source, to, left in simulation.in_flight)


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


def check_conservation(method: Method, *, workers: int = 4) -> None:
    """What the method declares to be conserved is, through a few random schedules."""
    if method.ledger is not None:
        check_ledger(method, method.ledger, workers=workers, schedules=5)
