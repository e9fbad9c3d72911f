"""RelaySGD."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..messages import message
from ..method import Method
from ..node import Node
from ..topology import Topology, Tree


@message
class Relay:
    models: Tensor  # (d,): sum of the models from the sender's side of the edge
    count: int  # how many they are


@dataclass
class Relays:
    """What each neighbour sent last."""

    of: dict[int, Relay] = field(default_factory=dict[int, Relay])


@dataclass(frozen=True, kw_only=True)
class RelaySGD(Method):
    """SGD whose models are relayed along a tree, so that each weighs the same at every worker.

    x_i <- x_i - lr * g_i(x_i);  m_ij = x_i + sum_{k != j} m_ki,old to every neighbour j;
    x_i <- (x_i + sum_j m_ji) / n

    A model d edges away comes d - 1 rounds late. While those of far workers have not come, n is
    the number of those that have.

    Args:
        topology: a tree, the same at every round; its weights are not used.

    Roles: worker. Messages: Relay.
    Reference: Vogels et al., "RelaySum for Decentralized Deep Learning on Heterogeneous Data",
    NeurIPS 2021 (RelaySGD).
    Differences: the authors' code by default fills up what has not come with the initial model; as
    many rounds after the start as the tree's diameter both divide by n. Momentum stays with its
    worker.
    """

    topology: Topology = field(default_factory=Tree)

    family: ClassVar[str] = "decentralized"
    messages: ClassVar[tuple[type, ...]] = (Relay,)
    synchronous: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"topology": Tree()}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        edges = set(self.topology.graph(workers).edges)
        both_ways = all((j, i) in edges for i, j in edges)
        if self.topology.period(workers) != 1 or not both_ways or len(edges) != 2 * (workers - 1):
            raise ValueError(
                f"RelaySGD needs a tree, and {type(self.topology).__name__} of {workers} workers "
                "is none; take Tree, Line or Star, or a Graph of n - 1 undirected edges"
            )

    async def step(self, node: Node) -> None:
        received = node.state(Relays).of
        gradient = await node.gradient()
        node.apply(gradient)
        peers = node.peers(self.topology).into
        for peer in peers:
            others = [received[other] for other in peers if other != peer and other in received]
            models = sum((relay.models for relay in others), start=node.parameters)
            node.send(peer, Relay(models, 1 + sum(relay.count for relay in others)))
        for peer in peers:
            _, received[peer] = await node.recv(Relay, source=peer)
        for peer in peers:
            node.mix(add=received[peer].models)
        count = 1 + sum(received[peer].count for peer in peers)
        node.mix(scale=1 / count)

    def restart(self, node: Node, x: Tensor) -> None:
        node.load(x)
        # Relayed on, they would bring back the models from before.
        node.state(Relays).of.clear()
