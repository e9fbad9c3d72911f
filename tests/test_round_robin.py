"""The server that takes its workers in turn."""

import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault, Pareto
from offbeat.experiment import Budget
from offbeat.methods import RoundRobinSGD
from offbeat.runtime.world import World
from offbeat.testing import simulated, small_experiment


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_staleness_is_n_minus_one_at_any_speeds(n):
    cluster = Cluster(workers=n, compute=Pareto(shape=1.3), latency=1e-3)
    run = simulated(small_experiment(RoundRobinSGD(), workers=n, cluster=cluster, lr=0.01))
    assert run.staleness[:n].tolist() == list(range(n))
    assert set(run.staleness[n:].tolist()) == {n - 1}


def test_it_is_sgd_on_gradients_delayed_by_a_turn():
    n, lr = 3, 0.05
    cluster = Cluster(workers=n, compute=Pareto(shape=1.3), slow={0: 4.0})
    experiment = small_experiment(RoundRobinSGD(), workers=n, cluster=cluster, lr=lr)
    run, world = simulated(experiment), World(experiment)
    A, b = world.data.train.inputs, world.data.train.targets
    x = [torch.zeros(8, dtype=torch.double)]
    for k in range(len(run.staleness)):
        worker, turn = k % n, k // n
        # What the worker was answered with in its last turn.
        at = x[k - n + 1] if turn else x[0]
        rows = world.batches[worker].indices(turn)
        x.append(x[-1] - lr * A[rows].T @ (A[rows] @ at - b[rows]) / len(rows))
    assert len(run.staleness) >= 150 - n
    torch.testing.assert_close(run.vector, x[-1], rtol=0, atol=1e-10)


def test_who_departs_is_left_out_and_who_comes_is_taken_in():
    faults = (
        Fault(kind="crash", rank=1, at=0.1),
        Fault(kind="leave", rank=0, at=0.2),
        Fault(kind="join", rank=3, at=0.3),
    )
    cluster = Cluster(workers=4, compute=Constant(seconds=0.01), latency=1e-4, faults=faults)
    experiment = small_experiment(RoundRobinSGD(), cluster=cluster, budget=Budget(seconds=0.5))
    run = simulated(experiment)
    rows = run.trace.steps
    staleness = {
        (low, high): set(
            rows["staleness"][(rows["at_ns"] > low * 1e9) & (rows["at_ns"] < high * 1e9)]
        )
        for low, high in ((0.05, 0.1), (0.15, 0.2), (0.25, 0.3), (0.35, 0.5))
    }
    assert list(staleness.values()) == [{2}, {1}, {0}, {1}]
