"""Stochastic gradient push."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..message import message
from ..method import Holder, Method, ModelLost
from ..node import Node, PeerLost
from ..topology import OnePeerExponential, Topology


@message
class Share:
    parameters: Tensor  # (d,): p_ji x_i
    weight: float  # p_ji w_i


@dataclass
class PushSum:
    """The push-sum weight w: over all workers and messages in flight, the w sum to n."""

    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class StochasticGradientPush(Method):
    """SGP: a gradient step on x at z = x / w, then a round of push-sum on x and w.

    x_i <- x_i - lr * g_i(z_i);  x_i <- sum_j p_ij x_j;  w_i <- sum_j p_ij w_j;  z_i = x_i / w_i

    Args:
        topology: directed, possibly time-varying; column j of P is j's equal shares.

    Roles: worker. Messages: Share.
    Reference: Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019,
    algorithm 1.
    Differences: weight decay and other terms in x of the inner optimizer act on x, not z; the two
    are equal on regular graphs.
    """

    topology: Topology = field(default_factory=OnePeerExponential)

    family: ClassVar[str] = "decentralized"
    reference: ClassVar[str] = (
        "Assran et al., Stochastic Gradient Push for Distributed Deep Learning, 2019"
    )
    messages: ClassVar[tuple[type, ...]] = (Share,)
    synchronous: ClassVar[bool] = True
    survives_loss: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any]] = {"topology": OnePeerExponential()}

    def validate(self, workers: int) -> None:
        self.topology.validate(workers)

    async def step(self, node: Node) -> None:
        push_sum = node.state(PushSum)
        gradient = await node.gradient(at=node.parameters / push_sum.weight)
        node.apply(gradient.vector, taken_at=gradient.version)
        peers = node.peers(self.topology)
        for peer, share in peers.out.items():
            node.send(peer, Share(node.parameters * share, push_sum.weight * share))
        node.mix(scale=peers.self_weight)
        push_sum.weight *= peers.self_weight
        for peer in peers.into:
            try:
                _, received = await node.recv(Share, source=peer)
            except PeerLost:
                continue  # Its share is lost with it.
            node.mix(add=received.parameters)
            push_sum.weight += received.weight

    def model(self, nodes: Sequence[Holder]) -> Tensor:
        """sum x / sum w."""
        if not nodes:
            raise ModelLost("no worker is left")
        total = torch.stack([node.parameters for node in nodes]).sum(dim=0)
        return total / sum(node.state(PushSum).weight for node in nodes)

    def restart(self, node: Node, x: Tensor) -> None:
        node.load(x)
        node.state(PushSum).weight = 1.0
