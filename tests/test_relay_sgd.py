"""RelaySGD: on a tree every model comes to every worker, late, and weighs the same."""

from dataclasses import dataclass

import networkx as nx
import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault
from offbeat.methods import DPSGD, RelaySGD, SlowMo
from offbeat.methods.relay_sgd import Relay, Relays
from offbeat.runtime.simulated import Simulation
from offbeat.testing import Quadratic, simulated, small_experiment
from offbeat.topology import (
    Complete,
    DirectedRing,
    Graph,
    Line,
    MetropolisHastings,
    OnePeerExponential,
    RandomMatching,
    Ring,
    Star,
    Tree,
)
from test_theory import by_hand

STARTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
BENT = Graph(edges=((0, 4), (4, 1), (1, 5), (5, 2), (4, 3)))
TREES = [Line(), Tree(), Star(), BENT]
TREE_NAMES = ["line", "tree", "star", "bent"]


def distances(topology, n=6):
    """(n, n): edges between two workers."""
    lengths = dict(nx.all_pairs_shortest_path_length(topology.graph(n)))
    return torch.tensor([[lengths[i][j] for j in range(n)] for i in range(n)])


def delayed_means(history, distance):
    """Of x after its step, one (n, d) a round: the means (n, d) over models d - 1 rounds old."""
    n, now = len(distance), len(history) - 1
    means = []
    for i in range(n):
        ages = [max(0, int(distance[i, j]) - 1) for j in range(n)]
        come = [history[now - age][j] for j, age in enumerate(ages) if age <= now]
        means.append(sum(come) / len(come))
    return torch.stack(means)


@pytest.mark.parametrize("topology", TREES, ids=TREE_NAMES)
def test_relay_sgd_is_its_matrix_form(topology):
    steps, lr = 20, 0.05
    experiment = small_experiment(RelaySGD(topology=topology), workers=6, steps=steps, lr=lr)
    simulation = Simulation(experiment, initial=lambda rank: STARTS[rank])
    assert simulation.run().error is None
    gradient, x, history = by_hand(experiment), STARTS, []
    for step in range(steps):
        slopes = torch.stack([gradient(x[rank], rank, step) for rank in range(6)])
        history.append(x - lr * slopes)
        x = delayed_means(history, distances(topology))
    parameters = torch.stack([node.parameters for node in simulation.nodes])
    torch.testing.assert_close(parameters, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("topology", TREES, ids=TREE_NAMES)
def test_the_mean_is_exact_after_as_many_rounds_as_the_diameter(topology):
    furthest = [0.0] * 8

    @dataclass(frozen=True, kw_only=True)
    class SameForEver(RelaySGD):
        async def step(self, node):
            node.load(STARTS[node.rank])
            await super().step(node)
            distance = (node.parameters - STARTS.mean(dim=0)).abs().max().item()
            furthest[node.round] = max(furthest[node.round], distance)

    simulated(small_experiment(SameForEver(topology=topology), workers=6, steps=8, lr=0.0))
    diameter = int(distances(topology).max())
    assert min(furthest[: diameter - 1]) > 0.01
    assert max(furthest[diameter - 1 :]) < 1e-14


def test_counts_grow_by_what_is_one_edge_further():
    simulation = Simulation(small_experiment(RelaySGD(topology=Line()), workers=6, steps=3))
    assert simulation.run().error is None
    counts = [
        {peer: relay.count for peer, relay in node.state(Relays).of.items()}
        for node in simulation.nodes
    ]
    assert counts == [{1: 3}, {0: 1, 2: 3}, {1: 2, 3: 3}, {2: 3, 4: 2}, {3: 3, 5: 1}, {4: 3}]


def test_relay_sgd_reaches_the_optimum_of_different_losses_where_d_psgd_stays_away():
    problem = Quadratic(noise=1.0, batch_size=16)

    def furthest(method):
        simulation = Simulation(small_experiment(method, problem=problem, steps=500, lr=0.2))
        assert simulation.run().error is None
        return [(node.parameters - problem.optimum()).norm().item() for node in simulation.nodes]

    for topology in (Line(), Star()):
        assert max(furthest(RelaySGD(topology=topology))) < 1e-6
    assert min(furthest(DPSGD(topology=MetropolisHastings(topology=Line())))) > 1e-2


def test_slow_momentum_over_relays_brings_no_model_back_from_before_its_outer_step():
    steps, period, lr = 15, 5, 0.05
    method = SlowMo(inner=RelaySGD(topology=Line()), period=period, alpha=1.0, beta=0.0)
    experiment = small_experiment(method, workers=6, steps=steps, lr=lr)
    run = simulated(experiment)
    gradient, x = by_hand(experiment), torch.zeros(6, 8, dtype=torch.double)
    for step in range(steps):
        if step % period == 0:
            history = []
        slopes = torch.stack([gradient(x[rank], rank, step) for rank in range(6)])
        history.append(x - lr * slopes)
        x = delayed_means(history, distances(Line()))
        if (step + 1) % period == 0:
            x = x.mean(dim=0).repeat(6, 1)
    torch.testing.assert_close(run.vector, x[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "topology",
    [Ring(), Complete(), OnePeerExponential(), DirectedRing(), RandomMatching(),
     Graph(edges=((0, 1), (1, 2), (2, 3), (3, 1)))],
    ids=lambda topology: type(topology).__name__,
)  # fmt: skip
def test_what_is_no_tree_is_refused(topology):
    name = type(topology).__name__
    with pytest.raises(ValueError, match=f"^RelaySGD needs a tree, and {name} of 4 workers is non"):
        small_experiment(RelaySGD(topology=topology))


def test_two_trees_are_none():
    with pytest.raises(ValueError, match="does not connect 4 workers"):
        small_experiment(RelaySGD(topology=Graph(edges=((0, 1), (2, 3)))))


def test_two_workers_and_one_need_no_other_tree():
    for workers in (1, 2):
        run = simulated(small_experiment(RelaySGD(), workers=workers, steps=200))
        assert run.metrics[-1].loss < run.metrics[0].loss / 1000
        assert run.trace.kinds == ([Relay.__name__] if workers == 2 else [])


@pytest.mark.parametrize("at", [0.0951, 0.1, 0.107])
@pytest.mark.parametrize("kind", ["crash", "leave"])
def test_a_lost_worker_ends_the_run_whenever_it_goes(at, kind):
    """Without it the tree falls into parts that would never hear of each other again."""
    faults = (Fault(kind=kind, rank=1, at=at),)
    # Of equal workers all learn of it in the same round, after its last message.
    cluster = Cluster(workers=4, compute=Constant(seconds=0.01), latency=1e-4, faults=faults)
    run = Simulation(small_experiment(RelaySGD(), cluster=cluster)).run()
    assert "worker 1 is gone, and RelaySGD does not survive a loss" in run.error
