from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import offbeat
from offbeat.topology import Ring, Topology


@offbeat.message
class Model:
    parameters: Tensor  # (d,)


@dataclass(frozen=True, kw_only=True)
class DPSGD(offbeat.Method):
    """D-PSGD (Lian et al. 2017): x_i <- sum_j W_ij x_j - lr * g_i(x_i)."""

    topology: Topology = Ring()
    synchronous: ClassVar[bool] = True  # every worker makes the same number of steps
    messages: ClassVar[tuple[type, ...]] = (Model,)

    async def step(self, node: offbeat.Node) -> None:
        peers = node.peers(self.topology)
        for peer in peers.out:
            node.send(peer, Model(node.parameters))
        gradient = await node.gradient()  # at x_i before the averaging; both go on at once
        node.mix(scale=peers.self_weight)
        for peer in peers.into:
            _, model = await node.recv(Model, source=peer)
            node.mix(add=peers.out[peer] * model.parameters)
        node.apply(gradient.vector, taken_at=gradient.version)
