"""Stochastic gradient push."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..ledger import Ledger
from ..messages import message
from ..method import Holder, Method, ModelLost
from ..node import Node
from ..suspensions import PeerLost
from ..topology import OnePeerExponential, Topology

LEAST = 2.0**-10
"""The push-sum weight below which a worker, once others have departed, keeps what it has."""


@message
class Share:
    parameters: Tensor  # (d,): p_ji x_i
    weight: float  # p_ji w_i


@dataclass
class PushSum:
    """What a worker has of push-sum, and what is due to it."""

    weight: float = 1.0
    """w: over all workers and messages in flight, the w sum to n."""
    kept: float = 1.0
    """The part of its w and its x that is still its own; the rest is in the shares it sent."""
    owed: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Round and sender of the shares that have not been added, oldest first."""


def _held(node: Node) -> Tensor:
    """x and w, (d + 1,)."""
    push_sum = node.state(PushSum)
    weight = node.parameters.new_tensor([push_sum.weight])
    return push_sum.kept * torch.cat([node.parameters, weight])


def _carried(message: Any) -> Tensor | None:
    if not isinstance(message, Share):
        return None
    return torch.cat([message.parameters, message.parameters.new_tensor([message.weight])])


@dataclass(frozen=True, kw_only=True)
class StochasticGradientPush(Method):
    """SGP: a gradient step on x at z = x / w, then a round of push-sum on x and w.

    x_i <- x_i - lr * g_i(z_i);  x_i <- sum_j p_ij x_j;  w_i <- sum_j p_ij w_j;  z_i = x_i / w_i

    With overlap (tau-OSGP) a worker sends its shares and goes on. At the end of each round it adds
    those that are here, and waits only for shares that were sent tau rounds before. A share's x and
    w are added together, so z is no less unbiased; what is under way is missing from both.

    Args:
        topology: directed, possibly time-varying; column j of P is j's equal shares.
        overlap: tau, rounds that a share may be under way without anybody waiting for it; 0 is SGP.

    Roles: worker. Messages: Share.
    Reference: Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019,
    algorithm 1 and Overlap SGP.
    Differences: with overlap, too, shares are sent at every round. Weight decay and other terms in
    x of the inner optimizer act on x, not z; the two are equal on regular graphs without overlap.
    Those whom departures leave may send to others without being sent anything, so that their w
    falls towards 0 and the step lr / w of z grows without bound. From the first departure on, a
    worker with w < 1 therefore steps by lr w, and one with w below 1/1024 sends shares of nothing.
    """

    topology: Topology = field(default_factory=OnePeerExponential)
    overlap: int = 0

    family: ClassVar[str] = "decentralized"
    messages: ClassVar[tuple[type, ...]] = (Share,)
    synchronous: ClassVar[bool] = True
    survives_loss: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"topology": OnePeerExponential()}
    ledger: ClassVar[Ledger | None] = Ledger(held=_held, carried=_carried)

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.overlap < 0:
            raise ValueError(f"overlap is {self.overlap}; it must not be negative")

    async def step(self, node: Node) -> None:
        push_sum = node.state(PushSum)
        z = node.parameters if push_sum.weight == 1.0 else node.parameters / push_sum.weight
        gradient = await node.gradient(at=z)
        lr_scale = min(1.0, push_sum.weight) if node.departed else 1.0
        node.apply(gradient, lr_scale=lr_scale)
        peers = node.peers(self.topology)
        drained = bool(node.departed) and push_sum.weight < LEAST
        for peer, weight in peers.out.items():
            share = 0.0 if drained else weight
            node.send(peer, Share(node.scaled(share), push_sum.weight * share))
        push_sum.kept = 1.0 if drained else peers.self_weight
        push_sum.owed += [(node.round, peer) for peer in peers.into]
        await self._add_shares(node, due=node.round - self.overlap)
        self._mix(node)

    def _mix(self, node: Node, x: Tensor | None = None, w: float = 0.0) -> None:
        """Keep what is left of x and w after the shares sent, and add what has come."""
        push_sum = node.state(PushSum)
        node.mix(scale=push_sum.kept, add=x)
        push_sum.weight = push_sum.kept * push_sum.weight + w
        push_sum.kept = 1.0

    async def _add_shares(self, node: Node, due: int) -> None:
        """Add the shares that are here, after waiting for those of rounds up to `due`."""
        push_sum = node.state(PushSum)
        late: list[tuple[int, int]] = []
        for round, peer in push_sum.owed:
            if peer not in node.departed and not node.is_live(peer, round):
                continue  # It was lost with an earlier life of its sender.
            if round <= due:
                try:
                    found = await node.recv(Share, source=peer)
                except PeerLost:
                    continue  # It is lost with its sender.
            else:
                # Shares of one sender stay in order: this is the oldest that is owed.
                found = node.poll(Share, source=peer)
            if found is None:
                late.append((round, peer))
            else:
                self._mix(node, found[1].parameters, found[1].weight)
        push_sum.owed = late

    async def settle(self, node: Node) -> None:
        await self._add_shares(node, due=node.round)

    def model(self, nodes: Sequence[Holder]) -> Tensor:
        """sum x / sum w."""
        if not nodes:
            raise ModelLost("no worker is left")
        states = [node.state(PushSum) for node in nodes]
        own = zip(nodes, states, strict=True)
        total = torch.stack([state.kept * node.parameters for node, state in own]).sum(dim=0)
        return total / sum(state.kept * state.weight for state in states)

    def restart(self, node: Node, x: Tensor) -> None:
        node.load(x)
        node.states[PushSum] = PushSum()
