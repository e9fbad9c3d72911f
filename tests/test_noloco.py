"""NoLoCo: local steps, and outer steps in pairs."""

from dataclasses import dataclass

import pytest
import torch

from offbeat.cluster import Cluster, Fault
from offbeat.experiment import Budget
from offbeat.methods import SGD, NoLoCo, SlowMo
from offbeat.methods.noloco import SlowWeights, pulled_momentum
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.testing import simulated, small_experiment
from offbeat.topology import (
    BipartiteMatching,
    Complete,
    DirectedRing,
    RandomMatching,
    Ring,
)

STARTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def test_the_outer_step_by_its_formula():
    phi, delta = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    mean_phi, mean_change = torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 4.0])
    settings = {"outer_lr": 0.25, "outer_momentum": 0.5}
    phi, delta = pulled_momentum(phi, delta, mean_phi, mean_change, **settings)
    # 0.5 * 0.5 + 0.25 * (-1) + 0.25 * (3 - 1);  0.5 * (-1) + 0.25 * 4 + 0.25 * (1 - 2)
    assert delta.tolist() == [0.5, 0.25]
    assert phi.tolist() == [1.5, 2.25]


@pytest.mark.parametrize("workers", [4, 5])
@pytest.mark.parametrize("topology", [RandomMatching(seed=3), BipartiteMatching()], ids=repr)
def test_noloco_is_its_pseudocode(workers, topology):
    H, steps, lr, eta, mu = 3, 18, 0.05, 0.6, 0.4
    method = NoLoCo(topology=topology, local_steps=H, outer_lr=eta, outer_momentum=mu)
    experiment = small_experiment(method, workers=workers, steps=steps, lr=lr)
    simulation = Simulation(experiment, initial=lambda rank: STARTS[rank])
    assert simulation.run().error is None

    world = World(experiment)
    A, b = world.data.train.inputs, world.data.train.targets
    phi = STARTS[:workers].clone()
    x, delta, met = phi.clone(), torch.zeros(workers, 8, dtype=torch.double), set()
    for step in range(steps):
        for rank in range(workers):
            rows = world.batches[rank].indices(step)
            x[rank] -= lr * A[rows].T @ (A[rows] @ x[rank] - b[rows]) / len(rows)
        if (step + 1) % H == 0:
            partners = topology.partners(workers, step // H)
            change, before = x - phi, phi.clone()
            for i, j in enumerate(partners.tolist()):
                mean_phi = (before[i] + before[j]) / 2
                mean_change = (change[i] + change[j]) / 2
                delta[i] = mu * delta[i] + eta * mean_change + eta * (mean_phi - before[i])
                phi[i] = before[i] + delta[i]
                met.add((i, j))
            x = phi.clone()
    for node in simulation.nodes:
        torch.testing.assert_close(node.parameters, x[node.rank], rtol=0, atol=1e-10)
        own = node.state(SlowWeights)
        torch.testing.assert_close(own.momentum, delta[node.rank], rtol=0, atol=1e-10)
    assert len(met) > workers, "partners change"
    assert any(i == j for i, j in met) == (workers == 5), "of five one is alone"


@pytest.mark.parametrize("workers", [1, 2])
def test_where_all_workers_are_partners_it_is_slow_momentum(workers):
    """One mean for all: then nobody is drawn anywhere, and the rest is momentum."""
    settings = {"workers": workers, "steps": 24, "momentum": 0.5, "lr": 0.02}
    paired = NoLoCo(local_steps=6, outer_lr=0.7, outer_momentum=0.5)
    slow = SlowMo(inner=SGD(), period=6, alpha=0.7, beta=0.5, buffers="keep")
    one, other = (simulated(small_experiment(m, **settings)).vector for m in (paired, slow))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def without_learning(method, workers, outer_steps):
    steps = method.local_steps * outer_steps
    experiment = small_experiment(method, workers=workers, steps=steps, lr=0.0)
    simulation = Simulation(experiment, initial=lambda rank: STARTS[rank])
    assert simulation.run().error is None
    return torch.stack([node.parameters for node in simulation.nodes])


def test_without_learning_pairs_keep_the_mean_and_come_to_it():
    method, mean = NoLoCo(local_steps=1), STARTS.mean(dim=0)
    for outer_steps, distance in ((3, 10), (200, 1e-9)):
        x = without_learning(method, 6, outer_steps)
        torch.testing.assert_close(x.mean(dim=0), mean, rtol=0, atol=1e-12)
        assert (x - mean).norm() < distance


@dataclass(frozen=True, kw_only=True)
class FixedPairs(RandomMatching):
    """The same partners for ever."""

    def partners(self, size, round):
        return super().partners(size, 0)


def test_partners_have_to_change():
    x = without_learning(NoLoCo(local_steps=1, topology=FixedPairs()), 6, 200)
    assert (x - STARTS.mean(dim=0)).norm() > 0.5


def test_partners_are_counted_in_outer_steps():
    """In rounds a matching of period two would give everyone one partner for ever."""
    asked = []

    @dataclass(frozen=True, kw_only=True)
    class Asked(RandomMatching):
        def partners(self, size, round):
            asked.append(round)
            return super().partners(size, round)

    simulated(small_experiment(NoLoCo(local_steps=4, topology=Asked()), steps=20))
    assert set(asked) == set(range(5))


def test_who_loses_its_partner_makes_the_step_alone():
    cluster = Cluster(workers=2, faults=(Fault(kind="crash", rank=1, at=0.1),))
    method = NoLoCo(local_steps=3)
    run = simulated(small_experiment(method, cluster=cluster, workers=2, budget=Budget(seconds=3)))
    assert run.metrics[-1].loss < run.metrics[0].loss / 1000


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"local_steps": 0}, "local_steps is 0; it must be at least 1$"),
        ({"outer_lr": 0.0}, "^outer_lr is 0; it must be positive$"),
        ({"outer_momentum": 1.0}, "^outer_momentum is 1; it must be from 0 to below 1$"),
        ({"outer_momentum": -0.1}, "^outer_momentum is -0.1; it must be"),
        ({"topology": Ring()}, r"needs a matching, and Ring gives worker 0 of 4 the partners"),
        ({"topology": Complete()}, "needs a matching, and Complete gives"),
        ({"topology": DirectedRing()}, "needs a matching, and DirectedRing gives"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        small_experiment(NoLoCo(**settings))
