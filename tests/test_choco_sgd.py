"""CHOCO-SGD: its matrix form, what it conserves, and that it goes where bare compression cannot."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from offbeat.compression import (
    E3M0,
    QSGD,
    Compressed,
    Compressor,
    Half,
    Identity,
    RandomK,
    Sign,
    TopK,
)
from offbeat.messages import codec_of
from offbeat.method import Method
from offbeat.methods import DPSGD, ChocoSGD, StochasticGradientPush
from offbeat.methods.choco_sgd import Copies
from offbeat.mixing import mixing_matrix
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.testing import Quadratic, simulated, small_experiment
from offbeat.topology import (
    Complete,
    DirectedRing,
    Graph,
    MetropolisHastings,
    OnePeerExponential,
    RandomMatching,
    Ring,
    Star,
    Topology,
    WeightedGraph,
)

LOSSY = [TopK(fraction=0.25), RandomK(fraction=0.5), Sign(), QSGD(bits=2, bucket=8, unbiased=False)]
SYMMETRIC = WeightedGraph(
    weights=((0.5, 0.3, 0, 0.2), (0.3, 0.6, 0.1, 0), (0, 0.1, 0.7, 0.2), (0.2, 0, 0.2, 0.6))
)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def spread(workers=4):
    """Starts (n, d) that differ."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(workers, 8, generator=generator, dtype=torch.float64)


def begun(method, starts, **settings):
    planned = small_experiment(method, workers=len(starts), **settings)
    return planned, Simulation(planned, initial=lambda rank: starts[rank])


def ended(simulation):
    """Parameters (n, d) of all workers at the end."""
    assert simulation.run().error is None
    return torch.stack([node.parameters for node in simulation.nodes])


def gradients_by_hand(planned):
    world = World(planned)
    A, b = world.data.train.inputs, world.data.train.targets

    def gradients(x, step):
        rows = [world.batches[rank].indices(step) for rank in range(len(x))]
        pairs = zip(rows, x, strict=True)
        return torch.stack([A[r].T @ (A[r] @ y - b[r]) / len(r) for r, y in pairs])

    return gradients


# Compressors, of the rows of x (n, d), as their own docstrings have them.


def top(x, k):
    kept = torch.zeros_like(x)
    for row, values in zip(kept, x, strict=True):
        largest = values.abs().argsort(descending=True)[:k]
        row[largest] = values[largest]
    return kept


def signs(x):
    """With the scales of four tensors of two numbers."""
    parts = x.view(len(x), 4, 2)
    return (parts.abs().mean(dim=2, keepdim=True) * parts.sign()).view_as(x)


def four_bits(x):
    """The nearest of 0 and +-2^-k times the largest modulus, k up to 6."""
    powers = torch.tensor([0.0, *(2.0**-k for k in range(7)), *(-(2.0**-k) for k in range(7))])
    levels = x.abs().amax(dim=1, keepdim=True) * powers.double()
    return levels.gather(1, (x[:, :, None] - levels[:, None]).abs().argmin(dim=2))


@pytest.mark.parametrize("topology", [Ring(), SYMMETRIC], ids=["ring", "weights"])
@pytest.mark.parametrize(
    ("compressor", "Q"),
    [
        (TopK(fraction=0.25), lambda x: top(x, 2)),
        (Sign(), signs),
        (Half(), lambda x: torch.from_numpy(x.numpy().astype("float16").astype("float64"))),
        (E3M0(), four_bits),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Compressor) else "",
)
def test_it_is_its_matrix_form(topology, compressor, Q):
    method = ChocoSGD(topology=topology, compressor=compressor, gamma=0.3)
    starts = spread()
    planned, simulation = begun(method, starts, steps=25, momentum=0.5)
    gradients = gradients_by_hand(planned)
    W = torch.from_numpy(mixing_matrix(topology, 4))
    x, copies, m = starts, torch.zeros_like(starts), torch.zeros_like(starts)
    for step in range(25):
        m = 0.5 * m + gradients(x, step)
        half = x - 0.05 * m
        copies = copies + Q(half - copies)
        x = half + 0.3 * (W - torch.eye(4)) @ copies
    close(ended(simulation), x)
    for node in simulation.nodes:
        held = node.state(Copies).of
        assert set(held) == {node.rank, *node.peers(topology).into}
        for rank, copy in held.items():
            close(copy, copies[rank])


@pytest.mark.parametrize("topology", [Ring(), SYMMETRIC, Complete()], ids=str)
def test_without_compression_at_gamma_one_it_is_the_gossip_after_the_step(topology):
    starts = spread()
    method = ChocoSGD(topology=topology, compressor=Identity(), gamma=1.0)
    planned, simulation = begun(method, starts, steps=20)
    gradients = gradients_by_hand(planned)
    W = torch.from_numpy(mixing_matrix(topology, 4))
    x = starts
    for step in range(20):
        x = W @ (x - 0.05 * gradients(x, step))
    found = ended(simulation)
    close(found, x)
    # Which is SGP on that topology, and not D-PSGD, whose gossip comes before the step.
    close(found, ended(begun(StochasticGradientPush(topology=topology), starts, steps=20)[1]))
    before = ended(begun(DPSGD(topology=topology), starts, steps=20)[1])
    assert (found - before).abs().max() > 1e-4
    # Of gossip alone the order does not matter.
    still, gossip = (
        ended(begun(m, starts, steps=20, lr=0.0)[1]) for m in (method, DPSGD(topology=topology))
    )
    close(still, gossip)


@pytest.mark.parametrize("compressor", LOSSY, ids=str)
def test_gossip_keeps_the_mean_and_all_hold_the_same_copies(compressor):
    starts = spread()
    method = ChocoSGD(compressor=compressor, gamma=0.2)
    _, simulation = begun(method, starts, steps=30, lr=0.0)
    close(ended(simulation).mean(dim=0), starts.mean(dim=0))
    for node in simulation.nodes:
        for rank, copy in node.state(Copies).of.items():
            assert torch.equal(copy, simulation.nodes[rank].state(Copies).of[rank])


@dataclass(frozen=True, kw_only=True)
class BareGossip(Method):
    """x_i <- x_i - lr g_i, then x_i <- x_i + gamma sum_j W_ij (Q(x_j) - Q(x_i)), without copies."""

    topology: Topology = field(default_factory=Ring)
    compressor: Compressor = field(default_factory=TopK)
    gamma: float = 0.2
    messages: ClassVar = (Compressed,)
    synchronous: ClassVar = True

    async def step(self, node):
        gradient = await node.gradient()
        node.apply(gradient)
        peers = node.peers(self.topology)
        own = self.compressor.compress(node.parameters, node.layout, node.rng)
        for peer in peers.out:
            node.send(peer, own)
        mine, drift = self.compressor.decompress(own, node.layout), torch.zeros(8).double()
        for peer in peers.into:
            _, received = await node.recv(Compressed, source=peer)
            theirs = self.compressor.decompress(received, node.layout)
            drift += peers.out[peer] * (theirs - mine)
        node.mix(add=self.gamma * drift)


@pytest.mark.parametrize("compressor", LOSSY, ids=str)
def test_consensus_is_reached_where_bare_compressed_gossip_stands_off(compressor):
    starts = spread()

    def apart(method):
        x = ended(begun(method, starts, steps=120, lr=0.0)[1])
        return (x - starts.mean(dim=0)).norm().item()

    assert apart(ChocoSGD(compressor=compressor)) < 1e-3
    assert apart(BareGossip(compressor=compressor)) > 0.1


def test_workers_that_differ_settle_where_uncompressed_ones_do_and_bare_gossip_does_not():
    # Every worker's 16 samples have another optimum; its minibatch is all of them.
    problem = Quadratic(noise=1.0, batch_size=16)

    def found(method, lr):
        planned = small_experiment(method, problem=problem, steps=round(15 / lr), lr=lr)
        return ended(Simulation(planned))

    def off(x):
        return (x - problem.optimum()).norm(dim=1).max().item()

    compressor = TopK(fraction=0.25)
    choco = found(ChocoSGD(compressor=compressor), 0.1)
    whole = found(ChocoSGD(compressor=Identity()), 0.1)
    torch.testing.assert_close(choco, whole, rtol=0, atol=1e-3)
    assert off(found(ChocoSGD(compressor=compressor), 0.05)) < 0.6 * off(choco) < 0.15
    assert off(found(BareGossip(compressor=compressor), 0.05)) > 1.0


def test_the_less_is_let_through_the_smaller_gamma_has_to_be():
    starts = spread()

    def apart(gamma):
        method = ChocoSGD(compressor=TopK(fraction=0.01), gamma=gamma)  # One number of eight.
        x = ended(begun(method, starts, steps=150, lr=0.0)[1])
        return (x - x.mean(dim=0)).norm().item()

    assert apart(0.1) < 1e-3
    assert not apart(1.0) < 1.0


def test_bytes_are_those_of_the_differences():
    # One double of eight and its index, to both neighbours.
    messages = simulated(small_experiment(ChocoSGD(), steps=3)).trace.messages
    assert set(messages["bytes"]) == {codec_of(Compressed).header.size + 8 + 4}
    assert len(messages) == 3 * 4 * 2


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (ChocoSGD(gamma=0.0), "gamma is 0; it must be above 0 and at most 1"),
        (ChocoSGD(gamma=1.5), "gamma is 1.5; it must be above 0 and at most 1"),
        (ChocoSGD(compressor=QSGD(bits=2)), r"contracts, and QSGD\(bits=2, .*\) does not"),
        (ChocoSGD(topology=OnePeerExponential()), "OnePeerExponential changes from round to round"),
        (ChocoSGD(topology=RandomMatching()), "RandomMatching changes from round to round"),
        (ChocoSGD(topology=Star()), "CHOCO-SGD cannot use Star of 4: row 0 .* sums to"),
        (ChocoSGD(topology=DirectedRing()), "DirectedRing of 4 workers has others"),
        (ChocoSGD(topology=Graph(edges=((0, 1), (2, 3)))), "does not connect 4 workers"),
    ],
)
def test_bad_settings_are_refused(method, text):
    with pytest.raises(ValueError, match=text):
        method.validate(4)


def test_metropolis_hastings_makes_an_irregular_topology_do():
    ChocoSGD(topology=MetropolisHastings(topology=Star())).validate(4)
