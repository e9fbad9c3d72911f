"""Asynchronous decentralized parallel SGD."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..message import message
from ..method import Method
from ..node import Node, PeerLost
from ..topology import Ring, Topology


@message
class Offer:  # active -> passive
    parameters: Tensor  # (d,)


@message
class Difference:  # passive -> active
    delta: Tensor  # (d,)


@dataclass(frozen=True, kw_only=True)
class ADPSGD(Method):
    """AD-PSGD: x_i, x_j <- (x_i + x_j) / 2 with a random neighbour j, then x_i <- x_i - lr * g_i.

    The averaging goes on while the gradient is computed, at a snapshot taken before. It exchanges
    differences: j subtracts delta = (x_j - x_i) / 2 and sends it to i, who adds it. Whatever
    either has applied in between is kept, the sum of all x never changes, and no graph deadlocks.

    Args:
        topology: who may average with whom.

    Roles: worker, answer (beside it). Messages: Offer, Difference.
    Reference: Lian et al., "Asynchronous Decentralized Parallel Stochastic Gradient Descent",
    ICML 2018, algorithm 1.
    Differences: differences instead of values, so that the graph need not be bipartite; momentum
    stays with its worker.
    """

    topology: Topology = field(default_factory=Ring)

    family: ClassVar[str] = "decentralized"
    reference: ClassVar[str] = (
        "Lian et al., Asynchronous Decentralized Parallel Stochastic Gradient Descent, 2018"
    )
    background: ClassVar[tuple[str, ...]] = ("answer",)
    messages: ClassVar[tuple[type, ...]] = (Offer, Difference)
    survives_loss: ClassVar[bool] = True

    def validate(self, workers: int) -> None:
        self.topology.validate(workers)

    async def step(self, node: Node) -> None:
        neighbours = sorted(node.peers(self.topology).out)
        peer = node.rng.choice(neighbours) if neighbours else None
        if peer is not None:
            node.send(peer, Offer(node.parameters))
        gradient = await node.gradient()
        if peer is not None:
            try:
                _, answer = await node.recv(Difference, source=peer)
                node.mix(add=answer.delta)
            except PeerLost:
                pass  # It departed without an answer; this round has no averaging.
        node.apply(gradient.vector, taken_at=gradient.version)

    async def answer(self, node: Node) -> None:
        peer, offer = await node.recv(Offer)
        delta = (node.parameters - offer.parameters) / 2
        node.mix(add=-delta)
        node.send(peer, Difference(delta))
