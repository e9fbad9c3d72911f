"""Decentralized parallel SGD."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..messages import message
from ..method import Method
from ..mixing import mixing_matrix, require_doubly_stochastic
from ..node import Node
from ..topology import Ring, Topology


@message
class Weighted:
    parameters: Tensor  # (d,): W_ji x_i, from i to j


@dataclass(frozen=True, kw_only=True)
class DPSGD(Method):
    """D-PSGD: x_i <- sum_j W_ij x_j - lr * g_i(x_i).

    The gradient is taken at x_i before the averaging, so that both go on at once.

    Args:
        topology: of doubly stochastic weights W, possibly time-varying.

    Roles: worker. Messages: Weighted.
    Reference: Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms? A Case
    Study for Decentralized Parallel Stochastic Gradient Descent", NIPS 2017, algorithm 1.
    Differences: W need not be symmetric; momentum stays with its worker.
    """

    topology: Topology = field(default_factory=Ring)

    family: ClassVar[str] = "decentralized"
    messages: ClassVar[tuple[type, ...]] = (Weighted,)
    synchronous: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"topology": Ring()}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        # A random topology has no period; those of the package are symmetric at each round.
        for round in range(self.topology.period(workers) or 0):
            try:
                require_doubly_stochastic(mixing_matrix(self.topology, workers, round))
            except ValueError as error:
                method, name = type(self).__name__, type(self.topology).__name__
                raise ValueError(
                    f"{method} needs a doubly stochastic mixing matrix, and {name} of {workers} "
                    f"workers has none: {error}"
                ) from error

    async def step(self, node: Node) -> None:
        peers = node.peers(self.topology)
        for peer, weight in peers.out.items():
            node.send(peer, Weighted(node.scaled(weight)))
        gradient = await node.gradient()
        # A sum of some of them is no model: whoever looks meanwhile still sees x_i.
        received = [await node.recv(Weighted, source=peer) for peer in peers.into]
        own_weight = peers.self_weight
        for _, weighted in received:
            node.mix(scale=own_weight, add=weighted.parameters)
            own_weight = 1.0
        node.apply(gradient)
