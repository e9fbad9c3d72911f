"""Overlap SGP: nobody waits for a share before it is tau rounds late, and no mass is lost."""

import contextlib
import functools
from dataclasses import dataclass

import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault, Lognormal
from offbeat.experiment import Budget, Experiment
from offbeat.methods import SGD, SlowMo, StochasticGradientPush
from offbeat.methods.sgp import PushSum, Share
from offbeat.mixing import mixing_matrix
from offbeat.problems import Digits
from offbeat.runtime.capture import capture, read_state, restore
from offbeat.runtime.processes import run_processes
from offbeat.runtime.replay import replay_run
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.schedule import Cosine
from offbeat.suspensions import PeerLost
from offbeat.testing import (
    audited,
    check_ledger,
    check_messages,
    fingerprint,
    random_cluster,
    simulated,
    small_experiment,
)
from offbeat.topology import Graph, OnePeerExponential
from test_theory import by_hand

# Strongly connected, out-degrees 3, 1, 2, 1, 1: no weight stays at 1.
IRREGULAR = Graph(
    edges=((0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (2, 0), (3, 4), (4, 0)), directed=True
)
LEDGER = StochasticGradientPush.ledger
STARTS = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def push(overlap, topology=IRREGULAR):
    return StochasticGradientPush(topology=topology, overlap=overlap)


def equal_workers(latency, workers=5):
    compute = Constant(seconds=0.01)
    return Cluster(workers=workers, compute=compute, latency=latency, bandwidth=float("inf"))


def carried_out(method, cluster, *, steps, lr=0.05, simulation=Simulation):
    workers = cluster.workers
    experiment = small_experiment(method, workers=workers, steps=steps, lr=lr, cluster=cluster)
    begun = simulation(experiment, initial=lambda rank: STARTS[rank])
    run = begun.run()
    assert run.error is None, run.error
    return begun


def weights(nodes):
    return torch.tensor([node.state(PushSum).weight for node in nodes], dtype=torch.double)


@dataclass(frozen=True, kw_only=True)
class InLockstep(StochasticGradientPush):
    """Push-sum without overlap, as its pseudocode has it."""

    async def step(self, node):
        push_sum = node.state(PushSum)
        z = node.parameters if push_sum.weight == 1.0 else node.parameters / push_sum.weight
        gradient = await node.gradient(at=z)
        lr_scale = min(1.0, push_sum.weight) if node.departed else 1.0
        node.apply(gradient, lr_scale=lr_scale)
        peers = node.peers(self.topology)
        for peer, weight in peers.out.items():
            node.send(peer, Share(node.parameters * weight, push_sum.weight * weight))
        push_sum.kept = peers.self_weight
        for peer in peers.into:
            with contextlib.suppress(PeerLost):
                _, share = await node.recv(Share, source=peer)
                node.mix(scale=push_sum.kept, add=share.parameters)
                push_sum.weight = push_sum.kept * push_sum.weight + share.weight
                push_sum.kept = 1.0
        node.mix(scale=push_sum.kept)
        push_sum.weight *= push_sum.kept
        push_sum.kept = 1.0


@pytest.mark.parametrize("topology", [OnePeerExponential(), IRREGULAR])
@pytest.mark.parametrize("seed", range(3))
def test_no_overlap_is_sgp_to_the_bit(topology, seed):
    cluster = random_cluster(seed, 5)
    settings = {"workers": 5, "cluster": cluster, "momentum": 0.9, "lr": 0.02}
    lockstep, none, some = (
        simulated(small_experiment(method, **settings))
        for method in (InLockstep(topology=topology), push(0, topology), push(2, topology))
    )
    assert fingerprint(none) == fingerprint(lockstep)
    assert not torch.equal(none.vector, some.vector)


@pytest.mark.parametrize(
    ("overlap", "latency", "delay"),
    [(0, 0.1, 0), (1, 0.1, 1), (2, 0.1, 2), (3, 0.1, 3), (1, 1e-3, 1), (3, 1e-3, 1)],
)
def test_overlap_sgp_is_its_matrix_form_with_delayed_shares(overlap, latency, delay):
    """On a slow line every share is waited for, tau rounds late; on a fast one it is one late."""
    steps = 15
    simulation = carried_out(push(overlap), equal_workers(latency), steps=steps)
    world = World(simulation.experiment)
    A, b = world.data.train.inputs, world.data.train.targets
    P = torch.from_numpy(mixing_matrix(IRREGULAR, 5))
    own, others = torch.diag(torch.diag(P)), P - torch.diag(torch.diag(P))
    x, w, sent = STARTS, torch.ones(5, 1, dtype=torch.double), []
    for step in range(steps):
        z = x / w
        slopes = []
        for rank in range(5):
            rows = world.batches[rank].indices(step)
            slopes.append(A[rows].T @ (A[rows] @ z[rank] - b[rows]) / len(rows))
        x = x - 0.05 * torch.stack(slopes)
        sent.append((others @ x, others @ w))
        x, w = own @ x, own @ w
        if step >= delay:
            x, w = x + sent[step - delay][0], w + sent[step - delay][1]
    parameters = torch.stack([node.parameters for node in simulation.nodes])
    torch.testing.assert_close(weights(simulation.nodes), w[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(parameters, x, rtol=0, atol=1e-10)
    missing = 5 - w.sum().item()
    assert (missing > 0.5) == (delay > 0), "what is under way is part of the sum"


def test_overlap_hides_the_time_of_the_shares():
    # A share of 25 ms is hidden by three rounds of 10 ms; two hide 20 ms in every three rounds.
    in_step, hidden = 40 * 0.01 + 39 * 0.025, 40 * 0.01
    assert timed(push(0), 0.025) == pytest.approx(in_step, abs=1e-6)
    assert timed(push(3), 0.025) == pytest.approx(hidden, abs=1e-6)
    assert hidden < timed(push(1), 0.025) < in_step


def timed(method, latency):
    experiment = small_experiment(method, workers=5, steps=40, cluster=equal_workers(latency))
    return simulated(experiment).seconds


class Watching(Simulation):
    """Notes by how many rounds the oldest share that is owed to a worker is late."""

    latest = 0

    def step(self):
        more = super().step()
        for node in self.nodes:
            for round, _ in node.state(PushSum).owed:
                self.latest = max(self.latest, node.round - round)
        return more


@pytest.mark.parametrize("overlap", [1, 2, 4])
def test_no_share_is_more_than_tau_rounds_late_though_a_worker_is_slow(overlap):
    cluster = Cluster(workers=5, slow={2: 5.0}, compute=Lognormal(sigma=0.4), latency=0.01)
    watched = carried_out(push(overlap), cluster, steps=40, simulation=Watching)
    assert watched.latest == overlap
    assert all(len(node.state(PushSum).owed) <= 3 * overlap for node in watched.nodes)


# Mass


@pytest.mark.parametrize("overlap", [1, 3])
def test_mass_balances_under_random_schedules_with_faults(overlap):
    check_ledger(push(overlap), LEDGER, workers=5, schedules=12, first=100 * overlap)


@pytest.mark.parametrize("latency", [1e-4, 0.03])
def test_mass_balances_when_workers_come_back(latency):
    plan = [
        ("crash", 1, 0.02),
        ("join", 1, 0.021),  # Before anybody has awaited what it had owed.
        ("leave", 1, 0.09),
        ("join", 1, 0.13),
        ("crash", 2, 0.08),
        ("join", 2, 0.0801),
        ("crash", 3, 0.07),
    ]
    faults = tuple(Fault(kind=kind, rank=rank, at=at) for kind, rank, at in plan)
    for seed in range(4):
        cluster = Cluster(workers=5, latency=latency, bandwidth=1e5, faults=faults)
        simulation = audited(push(3), LEDGER, cluster, seed=seed, steps=25)
        assert simulation.run().error is None
        assert simulation.departed == {3}
        assert min(node.round for node in simulation.nodes) >= 20


@dataclass(frozen=True, kw_only=True)
class WeightLate(StochasticGradientPush):
    """Adds the x of a share at once and its w a round later."""

    async def step(self, node):
        before = node.state(PushSum).weight
        await super().step(node)
        gained = node.state(PushSum).weight - before
        node.state(PushSum).weight -= gained if node.round % 2 else 0.0


def test_the_ledger_sees_a_weight_that_comes_apart_from_its_parameters():
    with pytest.raises(AssertionError, match="ledger of WeightLate is out by"):
        check_ledger(WeightLate(topology=IRREGULAR, overlap=2), LEDGER, workers=5, schedules=3)


@pytest.mark.parametrize("seed", range(2))
def test_overlapping_push_sum_finds_the_mean_whatever_the_timing(seed):
    cluster = random_cluster(seed, 5, faults=False)
    simulation = carried_out(push(3), cluster, steps=500, lr=0.0)
    x = torch.stack([node.parameters for node in simulation.nodes])
    z = x / weights(simulation.nodes)[:, None]
    torch.testing.assert_close(z, STARTS.mean(dim=0).expand(5, 8), rtol=0, atol=1e-9)


def test_survivors_go_on():
    faults = tuple(Fault(kind="crash", rank=rank, at=0.1) for rank in (1, 2))
    cluster = Cluster(workers=4, latency=0.015, faults=faults)
    experiment = small_experiment(
        push(2, OnePeerExponential()), cluster=cluster, budget=Budget(seconds=5)
    )
    run = simulated(experiment)
    assert run.metrics[-1].loss < run.metrics[0].loss / 100


@pytest.mark.parametrize("overlap", [2, 3, 6])
def test_shares_under_way_at_the_end_are_no_messages_that_pile_up(overlap):
    check_messages(push(overlap), workers=5)
    check_messages(push(overlap, OnePeerExponential()), workers=8)


def test_a_negative_overlap_is_refused():
    with pytest.raises(ValueError, match=r"^overlap is -1; it must not be negative$"):
        small_experiment(push(-1, OnePeerExponential()))


# Under SlowMo


@pytest.mark.parametrize("overlap", [0, 2, 6])
def test_slow_momentum_averages_all_mass_that_is_under_way_too(overlap):
    method = SlowMo(inner=push(overlap), period=4, alpha=1.0, beta=0.0)
    # SlowMo divides by the learning rate, so it is next to nothing.
    simulation = carried_out(method, equal_workers(0.025), steps=8, lr=1e-14)
    for node in simulation.nodes:
        torch.testing.assert_close(node.parameters, STARTS.mean(dim=0), rtol=0, atol=1e-12)
        assert node.state(PushSum) == PushSum()
    assert not simulation.in_flight


@pytest.mark.parametrize("buffers", ["reset", "keep"])
@pytest.mark.parametrize(
    ("overlap", "latency", "delay"),
    [(0, 0.1, 0), (1, 0.1, 1), (2, 0.1, 2), (6, 0.1, 6), (3, 1e-3, 1)],
)
def test_slow_momentum_over_overlapping_push_is_its_pseudocode(overlap, latency, delay, buffers):
    """What is under way at the end of a block is in the mean, and the next begins with w = 1."""
    method = SlowMo(inner=push(overlap), period=5, alpha=0.9, beta=0.6, buffers=buffers)
    schedule = Cosine(total=20 * 5 * 4)
    experiment = small_experiment(
        method, workers=5, steps=20, lr=0.02, momentum=0.9, schedule=schedule,
        cluster=equal_workers(latency),
    )  # fmt: skip
    gradient = by_hand(experiment)
    P = torch.from_numpy(mixing_matrix(IRREGULAR, 5))
    own, others = torch.diag(torch.diag(P)), P - torch.diag(torch.diag(P))
    start = u = torch.zeros(8, dtype=torch.double)
    v = torch.zeros(5, 8, dtype=torch.double)
    for block in range(4):
        x, w, sent = start.repeat(5, 1), torch.ones(5, 1, dtype=torch.double), []
        if buffers == "reset":
            v = torch.zeros_like(v)
        for step in range(5 * block, 5 * block + 5):
            gamma = 0.02 * schedule.factor(20 * step)
            slopes = [gradient(x[rank] / w[rank], rank, step) for rank in range(5)]
            v = 0.9 * v + torch.stack(slopes)
            x = x - gamma * v
            sent.append((others @ x, others @ w))
            x, w = own @ x, own @ w
            if len(sent) > delay:
                x, w = x + sent[-1 - delay][0], w + sent[-1 - delay][1]
        under_way = sum(shares for shares, _ in sent[max(0, 5 - delay) :])
        mean = (x + under_way).mean(dim=0)
        u = 0.6 * u + (start - mean) / gamma
        start = start - 0.9 * gamma * u
    torch.testing.assert_close(simulated(experiment).vector, start, rtol=0, atol=1e-10)


def test_slow_momentum_each_step_over_overlapping_push_is_that_over_sgd():
    """Push-sum only moves mass about before SlowMo averages it."""
    settings = {"workers": 5, "steps": 30, "cluster": equal_workers(0.004)}
    each_step = SlowMo(inner=push(3), period=1, alpha=1.0, beta=0.6)
    plain = SlowMo(inner=SGD(), period=1, alpha=1.0, beta=0.6)
    one, other = (simulated(small_experiment(m, **settings)).vector for m in (each_step, plain))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


# Kept between two rounds, and real


class Held(Simulation):
    """A simulation whose workers stop before a round."""

    at_round = 7

    def next_round(self, task):
        return task.node.round < self.at_round and super().next_round(task)


def test_what_is_owed_is_captured_and_comes_after_all():
    experiment = small_experiment(push(2), workers=5, lr=0.0, cluster=equal_workers(0.025))
    held = Held(experiment, initial=lambda rank: STARTS[rank])
    held.run()
    states = {node.rank: read_state(capture(held.scheduler, node.rank)) for node in held.nodes}
    assert any(node.state(PushSum).owed for node in held.nodes)
    again = Held(experiment)
    again.at_round = 8
    for rank, state in states.items():
        again._place(rank, STARTS[rank])
        restore(again.scheduler, state)
    for node in again.nodes:
        again.scheduler.begin(node)
    again.scheduler.drain()
    while again.step():
        pass
    unread = sum(message.weight for _, _, message in again.in_flight)
    assert [node.round for node in again.nodes] == [8] * 5
    assert weights(again.nodes).sum().item() + unread == pytest.approx(5, abs=1e-12)


def test_overlap_sgp_runs_as_processes_and_replays_to_the_bit(tmp_path):
    experiment = Experiment(
        method=push(2, OnePeerExponential()),
        problem=Digits(),
        cluster=Cluster(workers=2),
        optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.5),
        budget=Budget(samples=800),
    )
    run = run_processes(experiment, tmp_path)
    assert run.error is None
    assert run.metrics[-1].loss < run.metrics[0].loss
    assert torch.equal(replay_run(experiment, tmp_path / "journals").vector, run.vector)
