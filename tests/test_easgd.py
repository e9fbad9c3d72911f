"""Elastic averaging: its formula, its pseudocode, and what an exchange conserves."""

import functools

import pytest
import torch

from offbeat.cluster import Cluster, Constant
from offbeat.methods import ElasticAveragingSGD
from offbeat.methods.easgd import elastic_difference
from offbeat.runtime.simulated import Simulation
from offbeat.testing import check_ledger, simulated, small_experiment
from test_theory import by_hand, close


def test_the_elastic_difference_by_its_formula():
    x, center = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 5.0])
    assert elastic_difference(x, center, 0.25).tolist() == [0.5, -1.0]


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["EASGD", "EAMSGD"])
@pytest.mark.parametrize(("local_steps", "servers"), [(1, 1), (3, 1), (3, 2)])
def test_it_is_its_pseudocode(local_steps, servers, momentum):
    # Speeds without ties, and messages that are quick: exchanges come in the order of gradients.
    n, alpha, lr = 3, 0.3, 0.02
    cluster = Cluster(
        workers=n, compute=Constant(seconds=0.01), latency=1e-7, bandwidth=float("inf"),
        slow={0: 1.0, 1: 1.37, 2: 2.11},
    )  # fmt: skip
    method = ElasticAveragingSGD(local_steps=local_steps, elasticity=n * alpha, servers=servers)
    optimizer = functools.partial(torch.optim.SGD, lr=lr, momentum=momentum, nesterov=momentum > 0)
    experiment = small_experiment(method, workers=n, steps=20, cluster=cluster, optimizer=optimizer)
    simulation = Simulation(experiment)
    run = simulation.run()
    assert run.error is None
    gradient, ended = by_hand(experiment), run.trace.gradients
    center = torch.zeros(8, dtype=torch.double)
    x, v, t = [center] * n, [center] * n, [0] * n
    for row in ended[ended["end_ns"].argsort()]:
        i = int(row["node"])
        before, g = x[i], gradient(x[i], i, t[i])
        if t[i] % local_steps == 0:
            delta = alpha * (before - center)
            x[i], center = x[i] - delta, center + delta
        v[i] = momentum * v[i] + g
        x[i] = x[i] - lr * (g + momentum * v[i])
        t[i] += 1
    assert sum(t) == 60
    assert len(set(t)) == 3
    close(run.vector, center)
    for rank in range(n):
        close(simulation.nodes[rank].parameters, x[rank])


@pytest.mark.parametrize("servers", [1, 2])
def test_what_reaches_the_center_leaves_a_worker(servers):
    method = ElasticAveragingSGD(local_steps=2, servers=servers)
    check_ledger(method, ElasticAveragingSGD.ledger, workers=4, schedules=25)


def test_without_learning_workers_and_center_meet_at_their_mean():
    starts = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    experiment = small_experiment(ElasticAveragingSGD(local_steps=1), steps=200, lr=0.0)
    simulation = Simulation(
        experiment, initial=lambda rank: starts[rank] if rank < 4 else torch.zeros(8).double()
    )
    assert simulation.run().error is None
    for node in simulation.nodes:
        close(node.parameters, starts.sum(dim=0) / 5)


def test_the_model_is_the_center():
    simulation = Simulation(small_experiment(ElasticAveragingSGD()))
    run = simulation.run()
    assert torch.equal(run.vector, simulation.nodes[4].parameters)
    assert not torch.equal(run.vector, simulation.nodes[0].parameters)


def test_local_steps_save_messages():
    sent = {
        local_steps: len(
            simulated(
                small_experiment(ElasticAveragingSGD(local_steps=local_steps), steps=48)
            ).trace.messages
        )
        for local_steps in (1, 4)
    }
    assert sent[1] == 2 * 4 * 48
    # Whoever makes one step more may have begun another period.
    assert sent[1] / 4 <= sent[4] <= sent[1] / 4 + 2 * 4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"local_steps": 0}, "local_steps is 0; it must be at least 1"),
        ({"elasticity": 0.0}, "elasticity is 0; it must be above 0 and at most .* workers, 4"),
        ({"elasticity": 4.5}, "elasticity is 4.5; it must be above 0 and at most .* workers, 4"),
        ({"servers": 0}, "servers is 0; a parameter server needs at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        small_experiment(ElasticAveragingSGD(**settings), workers=4)
