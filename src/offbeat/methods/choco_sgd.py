"""CHOCO-SGD: gossip with compressed differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..compression import Compressed, Compressor, TopK
from ..method import Method
from ..mixing import mixing_matrix, require_doubly_stochastic
from ..node import Node
from ..topology import Ring, Topology


@dataclass
class Copies:
    """x^ (d,) of this worker and of each neighbour, by rank: all that is known of them there."""

    of: dict[int, Tensor] = field(default_factory=dict[int, Tensor])


@dataclass(frozen=True, kw_only=True)
class ChocoSGD(Method):
    """CHOCO-SGD: a local step, then gossip on public copies x^, kept up by compressed differences.

    x_i <- x_i - lr * g_i(x_i);  x^_j <- x^_j + Q(x_j - x^_j) for i and its neighbours j;
    x_i <- x_i + gamma sum_j W_ij (x^_j - x^_i)

    Each worker sends its Q(x_i - x^_i) to its neighbours, so all of them hold the same x^_i. As x_i
    settles the differences vanish, and with them the error of compression. The sum of all x_i is
    that of the local steps, whatever Q does. Who comes late would know nobody's copies, so every
    worker has to be there from the start to the end.

    `Identity` with gamma = 1 is x <- W (x - lr * g(x)), the gossip after the step, where D-PSGD has
    x <- W x - lr * g(x): SGP on that topology.

    Args:
        topology: static, of symmetric weights W whose rows and columns sum to 1.
        compressor: Q; it has to contract.
        gamma: consensus step size in (0, 1], the smaller the less Q lets through.

    Roles: worker. Messages: Compressed.
    Reference: Koloskova et al., "Decentralized Stochastic Optimization and Gossip Algorithms with
    Compressed Communication", ICML 2019, algorithm 2.
    Differences: the x^ are 0 at first; the authors' code begins them at x, and in it x_i is drawn
    to the x^ of the round before. Momentum and other buffers of the inner optimizer stay with their
    worker.
    """

    topology: Topology = field(default_factory=Ring)
    compressor: Compressor = field(default_factory=lambda: TopK(fraction=0.1))
    gamma: float = 0.2

    family: ClassVar[str] = "decentralized"
    messages: ClassVar[tuple[type, ...]] = (Compressed,)
    synchronous: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"topology": Ring()}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma:g}; it must be above 0 and at most 1")
        if not self.compressor.contracts:
            raise ValueError(
                f"CHOCO-SGD needs a compressor that contracts, and {self.compressor} does not: the "
                "copies would never come near what they stand for"
            )
        name = type(self.topology).__name__
        if self.topology.period(workers) != 1:
            raise ValueError(
                f"CHOCO-SGD needs a static topology, and {name} changes from round to round: a "
                "neighbour would miss what was sent to others meanwhile"
            )
        W = mixing_matrix(self.topology, workers)
        try:
            require_doubly_stochastic(W)
        except ValueError as error:
            raise ValueError(f"CHOCO-SGD cannot use {name} of {workers}: {error}") from error
        if not np.allclose(W, W.T, rtol=0, atol=1e-9):
            raise ValueError(
                f"CHOCO-SGD needs symmetric weights, and {name} of {workers} workers has others: "
                "use MetropolisHastings(topology=...) of an undirected one"
            )

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        node.apply(gradient)
        peers, copies = node.peers(self.topology), node.state(Copies).of
        for rank in (node.rank, *peers.into):
            copies.setdefault(rank, torch.zeros_like(node.parameters))
        difference = node.parameters - copies[node.rank]
        own = self.compressor.compress(difference, node.layout, node.rng)
        for peer in peers.out:
            node.send(peer, own)
        copies[node.rank] += self.compressor.decompress(own, node.layout)
        drift = torch.zeros_like(node.parameters)
        for peer in peers.into:
            _, received = await node.recv(Compressed, source=peer)
            copies[peer] += self.compressor.decompress(received, node.layout)
            drift += peers.out[peer] * (copies[peer] - copies[node.rank])  # W is symmetric.
        node.mix(add=self.gamma * drift)
