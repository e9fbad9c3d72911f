"""NoLoCo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..messages import message
from ..method import Method
from ..node import Node
from ..suspensions import PeerLost
from ..topology import RandomMatching, Topology, neighbors
from .diloco import check_outer


@message
class Progress:
    slow: Tensor  # (d,): phi, where the sender's local steps began
    change: Tensor  # (d,): x - phi, what they have changed


def pulled_momentum(
    slow: Tensor,
    momentum: Tensor,
    mean_slow: Tensor,
    mean_change: Tensor,
    outer_lr: float,
    outer_momentum: float,
) -> tuple[Tensor, Tensor]:
    """delta <- mu delta + eta mean(Delta) + eta (mean(phi) - phi);  phi <- phi + delta.

    Returns (phi, delta), each (d,).
    """
    momentum = outer_momentum * momentum + outer_lr * (mean_change + mean_slow - slow)
    return slow + momentum, momentum


@dataclass
class SlowWeights:
    slow: Tensor | None = None
    """phi (d,): where this worker's local steps began."""
    momentum: Tensor | None = None
    """delta (d,)."""


@dataclass(frozen=True, kw_only=True)
class NoLoCo(Method):
    """Local steps; every H of them an outer step with momentum, together with one random partner.

    Delta_i = x_i - phi_i after H local steps; with the means of the two partners:
    delta_i <- mu delta_i + eta mean(Delta) + eta (mean(phi) - phi_i);
    phi_i <- phi_i + delta_i;  x_i <- phi_i

    It is DiLoCo without a collective. The phi differ from worker to worker, and the last term draws
    each to its partners'. A worker without a partner takes its own values for the means.

    Args:
        topology: who are partners at which outer step; everyone has one at most.
        local_steps: H, steps between two outer ones.
        outer_lr: eta.
        outer_momentum: mu, from 0 to below 1.

    Roles: worker. Messages: Progress.
    Reference: Kolehmainen et al., "NoLoCo: No-all-reduce Low Communication Training Method for
    Large Models", 2025.
    Differences: the rule is that of the authors' code, whose two terms share eta, with other
    settings; pairs only, and no pipeline whose stages are routed at random.
    """

    topology: Topology = field(default_factory=RandomMatching)
    local_steps: int = 8
    outer_lr: float = 0.7
    outer_momentum: float = 0.5

    family: ClassVar[str] = "local updates"
    messages: ClassVar[tuple[type, ...]] = (Progress,)
    synchronous: ClassVar[bool] = True
    survives_loss: ClassVar[bool] = True
    outer_steps: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"local_steps": 1_000_000}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        # A random topology has no period; its first round stands for all.
        for outer in range(self.topology.period(workers) or 1):
            for rank in range(workers):
                partners = self.topology.out_neighbors(rank, workers, outer)
                back = [self.topology.out_neighbors(p, workers, outer) for p in partners]
                if len(partners) > 1 or any(other != (rank,) for other in back):
                    raise ValueError(
                        f"NoLoCo needs a matching, and {type(self.topology).__name__} gives worker "
                        f"{rank} of {workers} the partners {partners} at round {outer}; take "
                        "RandomMatching or BipartiteMatching"
                    )
        if self.local_steps < 1:
            raise ValueError(f"local_steps is {self.local_steps}; it must be at least 1")
        check_outer(self.outer_lr, self.outer_momentum)

    async def step(self, node: Node) -> None:
        own = node.state(SlowWeights)
        if own.slow is None or own.momentum is None:
            own.slow = node.parameters.clone()
            own.momentum = torch.zeros_like(own.slow)
        gradient = await node.gradient()
        node.apply(gradient)
        if (node.round + 1) % self.local_steps:
            return
        mean_slow, mean_change = own.slow, node.parameters - own.slow
        outer = node.round // self.local_steps
        peers = neighbors(self.topology, len(node.workers), node.rank, outer, node.is_live)
        for partner in peers.out:
            node.send(partner, Progress(mean_slow, mean_change))
            try:
                _, theirs = await node.recv(Progress, source=partner)
            except PeerLost:
                continue  # Then it makes this step alone.
            mean_slow = (mean_slow + theirs.slow) / 2
            mean_change = (mean_change + theirs.change) / 2
        own.slow, own.momentum = pulled_momentum(
            own.slow, own.momentum, mean_slow, mean_change, self.outer_lr, self.outer_momentum
        )
        node.load(own.slow)
