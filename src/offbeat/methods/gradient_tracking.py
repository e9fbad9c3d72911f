"""Gradient tracking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..ledger import Ledger
from ..messages import message
from ..node import Node
from .d_psgd import DPSGD


@message
class WeightedPair:
    parameters: Tensor  # (d,): W_ji x_i, from i to j
    tracker: Tensor  # (d,): W_ji y_i


@dataclass
class Tracking:
    """What a worker knows of the mean gradient."""

    tracker: Tensor | None = None
    """y (d,): over all workers and messages in flight, the y sum to the sum of all g."""
    gradient: Tensor | None = None
    """g (d,): the worker's own gradient that is in y."""
    kept: float = 1.0
    """The part of y that has not been sent away in the present round."""


def _held(node: Node) -> Tensor:
    """y - g, (d,)."""
    own = node.state(Tracking)
    if own.tracker is None or own.gradient is None:
        return torch.zeros_like(node.parameters)
    return own.kept * own.tracker - own.gradient


def _carried(message: Any) -> Tensor | None:
    return message.tracker if isinstance(message, WeightedPair) else None


@dataclass(frozen=True, kw_only=True)
class GradientTracking(DPSGD):
    """D-PSGD along y_i, which tracks the mean gradient of all workers, instead of along g_i.

    y_i <- sum_j W_ij y_j + g_i(x_i) - g_i,old;  x_i <- sum_j W_ij x_j - lr * y_i

    At the start y_i = g_i. The y always sum to what the g sum to, so that with exact gradients all
    workers converge to the minimum of the mean loss at a constant rate, however much their own
    losses differ. D-PSGD then stops short of it.

    Args:
        topology: of doubly stochastic weights W, possibly time-varying.

    Roles: worker. Messages: WeightedPair.
    Reference: Nedić, Olshevsky, Shi, "Achieving Geometric Convergence for Distributed Optimization
    over Time-Varying Graphs", SIAM Journal on Optimization 2017 (DIGing).
    Differences: stochastic gradients, as Pu and Nedić 2021 have them (DSGT), who average x after
    the step, not before it. W need not be symmetric. Momentum, of y, stays with its worker.
    """

    messages: ClassVar[tuple[type, ...]] = (WeightedPair,)
    ledger: ClassVar[Ledger | None] = Ledger(held=_held, carried=_carried)

    async def step(self, node: Node) -> None:
        own = node.state(Tracking)
        if own.tracker is None or own.gradient is None:
            own.tracker = torch.zeros_like(node.parameters)
            own.gradient = torch.zeros_like(node.parameters)
        peers = node.peers(self.topology)
        for peer, weight in peers.out.items():
            node.send(peer, WeightedPair(node.scaled(weight), weight * own.tracker))
        # Till the gradient is there the tracker stays: a round begun anew sends the same again.
        own.kept = own_weight = peers.self_weight
        gradient = await node.gradient()
        own.tracker, own.kept = own.kept * own.tracker, 1.0
        for peer in peers.into:
            _, pair = await node.recv(WeightedPair, source=peer)
            node.mix(scale=own_weight, add=pair.parameters)
            own.tracker = own.tracker + pair.tracker
            own_weight = 1.0
        # In this order one worker's y is its g to the bit.
        own.tracker = own.tracker - own.gradient + gradient.vector
        own.gradient = gradient.vector.clone()
        node.apply(own.tracker, taken_at=gradient.version)
