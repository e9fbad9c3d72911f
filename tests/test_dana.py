"""DANA: one worker's identity with Nesterov, many workers' formula, and who is looked ahead for."""

import functools

import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault, Pareto
from offbeat.experiment import Budget
from offbeat.methods import DANA, SGD, AsyncSGD
from offbeat.methods.dana import Momenta
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.schedule import Cosine
from offbeat.testing import fingerprint, simulated, small_experiment


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_without_momentum_it_is_asynchronous_sgd_to_the_bit():
    runs = [simulated(small_experiment(method)) for method in (DANA(momentum=0.0), AsyncSGD())]
    assert fingerprint(runs[0]) == fingerprint(runs[1])


def test_one_worker_takes_the_points_of_nesterov_momentum():
    # torch's Nesterov SGD holds the point at which the gradient is taken, as the worker does here.
    nesterov = functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True)
    expected = simulated(small_experiment(SGD(), workers=1, optimizer=nesterov))
    simulation = Simulation(small_experiment(DANA(momentum=0.9), workers=1, lr=0.02))
    run = simulation.run()
    assert run.error is None
    close(simulation.nodes[0].parameters, expected.vector)
    assert (run.vector - expected.vector).abs().max() > 1e-6, "the model is not the look-ahead"


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_many_workers_by_the_formula(beta):
    n, lr = 4, 0.01
    schedule = Cosine(total=4 * 40 * n)
    cluster = Cluster(workers=n, compute=Pareto(shape=1.5))
    experiment = small_experiment(
        DANA(momentum=beta), workers=n, steps=40, lr=lr, cluster=cluster, schedule=schedule
    )
    run, world = simulated(experiment), World(experiment)
    A, b = world.data.train.inputs, world.data.train.targets
    x, points = torch.zeros(8, dtype=torch.double), [torch.zeros(8, dtype=torch.double)] * n
    v, counts = [torch.zeros(8, dtype=torch.double)] * n, [0] * n
    sources = run.trace.messages["source"][run.trace.messages["to"] == n].tolist()
    for k, i in enumerate(sources):
        rows = world.batches[i].indices(counts[i])
        counts[i] += 1
        v[i] = beta * v[i] + A[rows].T @ (A[rows] @ points[i] - b[rows]) / len(rows)
        rate = lr * schedule.factor(4 * k)
        x = x - rate * v[i]
        points[i] = x - rate * beta * torch.stack(v).sum(dim=0)
    assert len(sources) >= 150
    close(run.vector, x)


def test_momenta_by_hand():
    momenta = Momenta()
    first = torch.tensor([1.0, 2.0])
    assert momenta.renew(0, first, 0.5).tolist() == [1, 2]
    assert momenta.renew(1, torch.tensor([4.0, 0.0]), 0.5).tolist() == [4, 0]
    assert momenta.renew(0, torch.tensor([1.0, 0.0]), 0.5).tolist() == [1.5, 1]
    assert momenta.total.tolist() == [5.5, 1]
    momenta.forget(1)
    momenta.forget(2)
    assert momenta.total.tolist() == [1.5, 1]
    assert first.tolist() == [1, 2]


def test_who_has_departed_is_not_looked_ahead_for():
    faults = (Fault(kind="crash", rank=1, at=0.1),)
    cluster = Cluster(workers=2, compute=Constant(seconds=0.01), faults=faults)
    simulation = Simulation(
        small_experiment(
            DANA(momentum=0.9), workers=2, lr=0.01, cluster=cluster, budget=Budget(seconds=0.3)
        )
    )
    assert simulation.run().error is None
    server = next(node for node in simulation.nodes if node.is_server)
    momenta = server.state(Momenta)
    assert set(momenta.of) == {0}
    close(momenta.total, momenta.of[0])


def test_a_momentum_of_one_is_refused():
    with pytest.raises(ValueError, match="momentum is 1; it must be from 0 to below 1"):
        small_experiment(DANA(momentum=1.0))
