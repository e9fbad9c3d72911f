"""Gradient tracking: y sums to what the gradients sum to, and so different losses do no harm."""

from dataclasses import dataclass

import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault
from offbeat.methods import DPSGD, GradientTracking
from offbeat.methods.gradient_tracking import Tracking, WeightedPair
from offbeat.mixing import mixing_matrix
from offbeat.runtime.simulated import Simulation
from offbeat.testing import Quadratic, check_ledger, simulated, small_experiment
from offbeat.topology import Exponential, OnePeerExponential, Ring, Star, WeightedGraph
from test_theory import by_hand

STARTS = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
TOPOLOGIES = [
    Ring(),
    Exponential(),
    OnePeerExponential(),
    WeightedGraph(weights=((0.5, 0.3, 0, 0.2), (0.3, 0.6, 0.1, 0),
                           (0, 0.1, 0.7, 0.2), (0.2, 0, 0.2, 0.6))),
]  # fmt: skip


class Rounds(Simulation):
    """Notes y and g, (n, 2, d), at the end of each round."""

    def __init__(self, experiment, **settings):
        super().__init__(experiment, **settings)
        self.seen = {}

    def next_round(self, task):
        own = task.node.state(Tracking)
        if task.node.round:
            pair = torch.stack([own.tracker, own.gradient])
            self.seen.setdefault(task.node.round, {})[task.node.rank] = pair
        return super().next_round(task)

    def of(self, round):
        return torch.stack([self.seen[round][rank] for rank in range(4)])


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: type(t).__name__)
def test_gradient_tracking_is_its_matrix_form(topology):
    steps, lr = 20, 0.05
    experiment = small_experiment(GradientTracking(topology=topology), steps=steps, lr=lr)
    simulation = Rounds(experiment, initial=lambda rank: STARTS[rank])
    assert simulation.run().error is None
    gradient, x = by_hand(experiment), STARTS
    y = slopes = torch.zeros(4, 8, dtype=torch.double)
    for step in range(steps):
        W = torch.from_numpy(mixing_matrix(topology, 4, step))
        before = slopes
        slopes = torch.stack([gradient(x[rank], rank, step) for rank in range(4)])
        y = W @ y + slopes - before
        x = W @ x - lr * y
        torch.testing.assert_close(simulation.of(step + 1)[:, 0], y, rtol=0, atol=1e-10)
    parameters = torch.stack([node.parameters for node in simulation.nodes])
    torch.testing.assert_close(parameters, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: type(t).__name__)
def test_trackers_sum_to_the_sum_of_the_gradients_at_every_round(topology):
    simulation = Rounds(small_experiment(GradientTracking(topology=topology), steps=30))
    assert simulation.run().error is None
    for round in range(1, 31):
        trackers, gradients = simulation.of(round).sum(dim=0)
        torch.testing.assert_close(trackers, gradients, rtol=0, atol=1e-10)
    first = simulation.of(1)
    assert torch.equal(first[:, 0], first[:, 1]), "y begins as g"


def test_the_difference_is_nothing_at_every_event_of_random_schedules():
    check_ledger(GradientTracking(), GradientTracking.ledger, workers=5, schedules=10)


@dataclass(frozen=True, kw_only=True)
class ForgetsTheOldGradient(GradientTracking):
    """y_i <- sum_j W_ij y_j + g_i."""

    async def step(self, node):
        node.state(Tracking).gradient = torch.zeros_like(node.parameters)
        await super().step(node)


@dataclass(frozen=True, kw_only=True)
class KeepsAll(GradientTracking):
    """Sends its y and keeps the whole of it."""

    async def step(self, node):
        tracking = node.state(Tracking)
        kept = None if tracking.tracker is None else 0.5 * tracking.tracker
        await super().step(node)
        if kept is not None:
            tracking.tracker = tracking.tracker + kept


@pytest.mark.parametrize("broken", [ForgetsTheOldGradient, KeepsAll])
def test_the_ledger_sees_trackers_that_count_a_gradient_twice(broken):
    with pytest.raises(AssertionError, match=f"ledger of {broken.__name__} is out by"):
        check_ledger(broken(), GradientTracking.ledger, workers=4, schedules=2)


# Workers that disagree

DIFFERENT = Quadratic(noise=1.0, batch_size=16)
"""Each of four workers takes the gradient of all of its 16 samples, whose optimum is its own."""


@pytest.mark.parametrize("topology", [Ring(), OnePeerExponential()], ids=lambda t: type(t).__name__)
def test_tracking_reaches_the_optimum_of_different_losses_at_a_rate_where_d_psgd_stays_away(
    topology,
):
    def distances(method):
        experiment = small_experiment(method, problem=DIFFERENT, steps=500, lr=0.15)
        simulation = Simulation(experiment)
        assert simulation.run().error is None
        optimum = DIFFERENT.optimum()
        return [(node.parameters - optimum).norm().item() for node in simulation.nodes]

    assert max(distances(GradientTracking(topology=topology))) < 1e-6
    assert min(distances(DPSGD(topology=topology))) > 1e-2


# Beside the paper


def test_momentum_is_of_the_tracker():
    settings = {"problem": DIFFERENT, "steps": 600, "lr": 0.05, "momentum": 0.6}
    run = simulated(small_experiment(GradientTracking(), **settings))
    assert (run.vector - DIFFERENT.optimum()).norm() < 1e-8


def test_both_averagings_go_on_beside_the_gradient():
    cluster = Cluster(workers=4, compute=Constant(seconds=0.02), latency=0.0, bandwidth=4e6)
    problem = Quadratic(dimension=1000, batch_size=4)
    run = simulated(
        small_experiment(GradientTracking(), cluster=cluster, problem=problem, steps=10, lr=0.01)
    )
    assert run.seconds == pytest.approx(0.2, abs=1e-3)
    # To each neighbour x and y; the eleventh round is refused its gradient.
    bytes_a_step = run.metrics[-1].bytes / (11 * 4 * 2)
    assert bytes_a_step == pytest.approx(2 * 8000, rel=0.02)
    assert run.trace.kinds == [WeightedPair.__name__]


def test_rows_that_do_not_sum_to_one_are_refused_in_the_name_of_the_method():
    with pytest.raises(ValueError, match=r"^GradientTracking needs a doubly stochastic mixing"):
        small_experiment(GradientTracking(topology=Star()))


@pytest.mark.parametrize("at", [0.0951, 0.1, 0.1033, 0.107])
@pytest.mark.parametrize("kind", ["crash", "leave"])
def test_a_lost_worker_ends_the_run_whenever_it_goes(at, kind):
    """What it held of the y is gone, and the others would go for another optimum."""
    faults = (Fault(kind=kind, rank=1, at=at),)
    # Of equal workers all learn of it in the same round, after its last message.
    cluster = Cluster(workers=4, compute=Constant(seconds=0.01), latency=1e-4, faults=faults)
    run = Simulation(small_experiment(GradientTracking(), cluster=cluster)).run()
    assert "worker 1 is gone, and GradientTracking does not survive a loss" in run.error


def test_the_timing_changes_nothing():
    vectors = []
    for seed in range(3):
        cluster = Cluster(workers=4, slow={seed: 3.0}, latency=0.004 * seed)
        vectors.append(simulated(small_experiment(GradientTracking(), cluster=cluster)).vector)
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[0], vectors[2])
