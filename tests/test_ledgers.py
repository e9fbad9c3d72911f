from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from offbeat.cluster import Cluster, Fault
from offbeat.experiment import Budget
from offbeat.messages import message
from offbeat.methods import ADPSGD, StochasticGradientPush
from offbeat.methods.ad_psgd import Difference, Offer
from offbeat.methods.sgp import LEAST, PushSum, Share
from offbeat.runtime.post import Post
from offbeat.runtime.simulated import Simulation
from offbeat.suspensions import PeerLost
from offbeat.testing import (
    Ledger,
    audited,
    check_conservation,
    check_ledger,
    random_cluster,
    small_experiment,
)
from offbeat.topology import Complete, Graph, Ring

# Strongly connected, out-degrees 3, 1, 2, 1, 1: no weight stays at 1.
IRREGULAR = Graph(
    edges=((0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (2, 0), (3, 4), (4, 0)), directed=True
)
PUSH = StochasticGradientPush(topology=IRREGULAR)
PUSH_LEDGER, PAIR_LEDGER = StochasticGradientPush.ledger, ADPSGD.ledger
SCHEDULES = 100


def test_push_sum_mass_balances_under_random_schedules_with_faults():
    check_ledger(PUSH, PUSH_LEDGER, workers=5, schedules=SCHEDULES)


def test_the_sum_of_ad_psgd_balances_under_random_schedules_with_faults():
    check_ledger(ADPSGD(topology=Ring()), PAIR_LEDGER, workers=5, schedules=SCHEDULES // 2)
    check_ledger(
        ADPSGD(topology=Complete()), PAIR_LEDGER, workers=4, schedules=SCHEDULES // 2, first=1000
    )


@pytest.mark.parametrize(("method", "ledger"), [(PUSH, PUSH_LEDGER), (ADPSGD(), PAIR_LEDGER)])
def test_the_random_schedules_put_something_at_stake(method, ledger):
    runs = []
    for seed in range(20):
        simulation = audited(method, ledger, random_cluster(seed, 5), seed=seed)
        simulation.run()
        runs.append(simulation)
    kinds = {fault.kind for s in runs for fault in s.experiment.cluster.faults}
    assert kinds == {"crash", "leave", "join", "slow"}
    assert sum(bool(s.departed) for s in runs) > 5
    assert sum(bool(s.lost_messages) for s in runs) > 3
    assert all(torch.as_tensor(s.applied).abs().sum() > 0.1 for s in runs)
    assert sum(s.checks for s in runs) > 20 * 100


def test_push_sum_weights_add_up_to_all_who_ever_took_part():
    for seed in range(20):
        simulation = audited(PUSH, PUSH_LEDGER, random_cluster(seed, 5), seed=seed)
        run = simulation.run()
        late = {f.rank for f in simulation.experiment.cluster.faults if f.kind == "join"}
        joined = {int(row["node"]) for row in run.trace.faults if row["kind"] == 2} & late
        mass = simulation.live() + simulation.in_flight_total() + simulation.lost()
        assert simulation.entered[-1] == 5 - len(late) + len(joined)
        assert mass[-1] == pytest.approx(float(simulation.entered[-1]), abs=1e-12)


def consensus_of_push_sum(steps, method=PUSH, cluster=None):
    """z of every worker after `steps` rounds without learning, and their starts."""
    cluster = cluster or Cluster(workers=5)
    starts = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    experiment = small_experiment(method, workers=5, steps=steps, lr=0.0, cluster=cluster)
    simulation = Simulation(experiment, initial=lambda rank: starts[rank])
    assert simulation.run().error is None
    weights = [node.state(PushSum).weight for node in simulation.nodes]
    weights = torch.tensor(weights, dtype=torch.double)
    x = torch.stack([node.parameters for node in simulation.nodes])
    return x / weights[:, None], starts, weights


def test_push_sum_on_an_irregular_digraph_converges_to_the_mean():
    z, starts, weights = consensus_of_push_sum(250)
    mean = starts.mean(dim=0)
    assert (weights - 1).abs().max() > 0.3
    torch.testing.assert_close(z, mean.expand(5, 8), rtol=0, atol=1e-9)
    x = z * weights[:, None]
    assert (x - mean).abs().max() > 0.1


def test_push_sum_finds_the_mean_whatever_the_timing():
    for seed in range(5):
        cluster = random_cluster(seed, 5, faults=False)
        z, starts, _ = consensus_of_push_sum(250, cluster=cluster)
        torch.testing.assert_close(z, starts.mean(dim=0).expand(5, 8), rtol=0, atol=1e-9)


def test_push_sum_takes_its_gradients_at_the_unbiased_parameters():
    asked = []
    simulation = Simulation(small_experiment(PUSH, workers=5, steps=10))
    request = simulation.request_gradient

    def noting(task, gradient):
        node = task.node
        z = node.parameters / node.state(PushSum).weight
        asked.append(torch.equal(gradient.snapshot, z))
        request(task, gradient)

    simulation.request_gradient = noting
    assert simulation.run().error is None
    assert len(asked) >= 50
    assert all(asked)


def test_a_survivor_to_whom_nobody_sends_is_not_drained_nor_steps_ever_further():
    # Of four on the one-peer exponential graph 0 and 3 are left: 3 sends to 0, and 0 to nobody.
    faults = tuple(Fault(kind="crash", rank=rank, at=0.1) for rank in (1, 2))
    cluster = Cluster(workers=4, faults=faults)
    experiment = small_experiment(
        StochasticGradientPush(), cluster=cluster, budget=Budget(seconds=10)
    )
    simulation = Simulation(experiment)
    run = simulation.run()
    assert run.error is None
    drained = simulation.nodes[1]
    assert drained.rank == 3
    assert drained.round > 900
    weight = drained.state(PushSum).weight
    assert LEAST / 2 <= weight < LEAST
    # Where it takes its gradients it has come as far as any worker.
    assert simulation.world.evaluate(drained.parameters / weight)["loss"] < run.metrics[0].loss / 9
    assert run.metrics[-1].loss < run.metrics[0].loss / 1000


def test_ad_psgd_without_learning_finds_the_mean():
    starts = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    experiment = small_experiment(ADPSGD(), workers=6, steps=150, lr=0.0)
    simulation = Simulation(experiment, initial=lambda rank: starts[rank])
    assert simulation.run().error is None
    x = torch.stack([node.parameters for node in simulation.nodes])
    torch.testing.assert_close(x, starts.mean(dim=0).expand(6, 8), rtol=0, atol=1e-3)


def test_what_a_crashed_node_held_and_had_under_way_is_lost():
    cluster = Cluster(workers=5, latency=0.05, faults=(Fault(kind="crash", rank=2, at=0.0331),))
    simulation = audited(PUSH, PUSH_LEDGER, cluster)
    assert simulation.run().error is None
    assert 2 in simulation.departed
    assert any(source == 2 for source, _, _ in simulation.lost_messages)
    assert any(to == 2 for _, to, _ in simulation.lost_messages)
    ids = [id(lost) for _, _, lost in simulation.lost_messages]
    assert len(ids) == len(set(ids))
    live = simulation.live()[-1]
    assert 0.5 < live < 4.9


@pytest.mark.parametrize("method", [PUSH, ADPSGD(topology=Complete())], ids=repr)
@pytest.mark.parametrize("latency", [1e-4, 0.03])
def test_ledgers_balance_when_nodes_come_back(method, latency):
    plan = [
        ("crash", 1, 0.02),
        ("join", 1, 0.051),
        ("leave", 1, 0.09),
        ("join", 1, 0.13),
        ("join", 2, 0.04),
        ("crash", 2, 0.08),
        ("join", 2, 0.085),
        ("crash", 3, 0.07),
    ]
    faults = tuple(Fault(kind=kind, rank=rank, at=at) for kind, rank, at in plan)
    for seed in range(10):
        cluster = Cluster(workers=5, latency=latency, bandwidth=1e5, faults=faults)
        simulation = audited(method, method.ledger, cluster, seed=seed, steps=20)
        simulation.run()
        assert simulation.checks > 100
        assert simulation.departed == {3}
        # At 30 ms something is always under way to or from those who go.
        assert latency < 0.01 or simulation.lost_messages


def test_one_who_leaves_loses_nothing_of_what_it_sent():
    cluster = Cluster(workers=5, latency=0.02, faults=(Fault(kind="leave", rank=2, at=0.05),))
    simulation = audited(PUSH, PUSH_LEDGER, cluster)
    assert simulation.run().error is None
    assert 2 in simulation.departed
    assert all(source != 2 for source, _, _ in simulation.lost_messages)


# Each of these breaks conservation in a way that has been seen in published code.


@dataclass(frozen=True, kw_only=True)
class KeepsAll(StochasticGradientPush):
    """Forgets to scale what it keeps."""

    async def step(self, node):
        kept = node.parameters.clone()
        weight = node.state(PushSum).weight
        await super().step(node)
        node.mix(add=kept * 0.25)
        node.state(PushSum).weight += 0.25 * weight


@dataclass(frozen=True, kw_only=True)
class WeightSentLate(StochasticGradientPush):
    """Shares are made of x before and w after the self-share was taken."""

    async def step(self, node):
        push_sum = node.state(PushSum)
        gradient = await node.gradient(at=node.parameters / push_sum.weight)
        node.apply(gradient)
        peers = node.peers(self.topology)
        push_sum.weight *= peers.self_weight
        for peer, share in peers.out.items():
            node.send(peer, Share(node.parameters * share, push_sum.weight * share))
        node.mix(scale=peers.self_weight)
        for peer in peers.into:
            _, received = await node.recv(Share, source=peer)
            node.mix(add=received.parameters)
            push_sum.weight += received.weight


@dataclass(frozen=True, kw_only=True)
class RowStochastic(StochasticGradientPush):
    """Divides by its in-degree instead of its out-degree."""

    async def step(self, node):
        push_sum = node.state(PushSum)
        gradient = await node.gradient(at=node.parameters / push_sum.weight)
        node.apply(gradient)
        peers = node.peers(self.topology)
        share = 1 / (len(peers.into) + 1)
        for peer in peers.out:
            node.send(peer, Share(node.parameters * share, push_sum.weight * share))
        node.mix(scale=share)
        push_sum.weight *= share
        for peer in peers.into:
            _, received = await node.recv(Share, source=peer)
            node.mix(add=received.parameters)
            push_sum.weight += received.weight


@pytest.mark.parametrize("broken", [KeepsAll, WeightSentLate, RowStochastic])
def test_the_ledger_sees_push_sum_that_makes_or_loses_mass(broken):
    with pytest.raises(AssertionError, match=f"ledger of {broken.__name__} is out by"):
        check_ledger(broken(topology=IRREGULAR), PUSH_LEDGER, workers=5, schedules=3)


@message
class Value:
    parameters: Tensor


@dataclass(frozen=True, kw_only=True)
class SwapsValues(ADPSGD):
    """Exchanges values: what either has applied in between is overwritten."""

    async def step(self, node):
        peer = node.rng.choice(sorted(node.peers(self.topology).out))
        node.send(peer, Offer(node.parameters))
        gradient = await node.gradient()
        try:
            _, answer = await node.recv(Value, source=peer)
            node.load(answer.parameters)
        except PeerLost:
            pass
        node.apply(gradient)

    async def answer(self, node):
        peer, offer = await node.recv(Offer)
        middle = (node.parameters + offer.parameters) / 2
        node.load(middle)
        node.send(peer, Value(middle))


@dataclass(frozen=True, kw_only=True)
class NotAtomic(ADPSGD):
    """Suspends between reading its parameters and changing them."""

    async def answer(self, node):
        peer, offer = await node.recv(Offer)
        middle = (node.parameters + offer.parameters) / 2
        delta = middle - offer.parameters
        await node.sleep(0.001)
        node.load(middle)
        node.send(peer, Difference(delta))


@pytest.mark.parametrize("broken", [SwapsValues, NotAtomic])
def test_the_ledger_sees_averaging_that_makes_or_loses_mass(broken):
    with pytest.raises(AssertionError, match=f"ledger of {broken.__name__} is out by"):
        check_ledger(broken(topology=Complete()), PAIR_LEDGER, schedules=5)


def test_the_ledger_sees_a_runtime_that_drops_messages(monkeypatch):
    arrive = Post._arrive

    def dropping(self, link):
        if self.clock.now > 20_000_000 and len(link.queue) == 1:
            link.queue.clear()
        else:
            arrive(self, link)

    monkeypatch.setattr(Post, "_arrive", dropping)
    with pytest.raises(AssertionError, match="is out by"):
        check_ledger(PUSH, PUSH_LEDGER, workers=5, schedules=3)


def test_a_ledger_that_forgets_the_messages_does_not_balance():
    nothing = Ledger(held=lambda node: node.parameters, carried=lambda message: None)
    simulation = audited(StochasticGradientPush(topology=IRREGULAR), nothing, Cluster(workers=5))
    with pytest.raises(AssertionError, match=r"after \d+ ns: live"):
        simulation.run()


def test_what_a_method_declares_to_conserve_is_checked():
    check_conservation(PUSH, workers=5)
    with pytest.raises(AssertionError, match="ledger of KeepsAll is out by"):
        check_conservation(KeepsAll(topology=IRREGULAR), workers=5)


def test_the_example_s_sum_weights_balance(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    from gosgd import GoSGD, Share, SumWeight

    def both(parameters, weight):
        return torch.cat([weight * parameters, parameters.new_tensor([weight])])

    ledger = Ledger(
        held=lambda node: both(node.parameters, node.state(SumWeight).value),
        carried=lambda message: (
            both(message.parameters, message.weight) if isinstance(message, Share) else None
        ),
    )
    check_ledger(GoSGD(probability=0.7), ledger, workers=5, schedules=20)
