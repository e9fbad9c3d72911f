"""Streaming DiLoCo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import Method
from ..node import Node
from ..suspensions import Started


@dataclass
class Reductions:
    """Outer gradients on their way, by fragment."""

    pending: dict[int, Started[Tensor]] = field(default_factory=dict[int, Started[Tensor]])


@dataclass(frozen=True, kw_only=True)
class StreamingDiLoCo(Method):
    """Local steps; fragment by fragment, an outer Nesterov step on the mean change of all workers.

    Fragment p, at steps t with (t - t_p) mod H = 0:  Delta_p = theta_p - x_p is sent;
    tau steps later:  theta_p <- Nesterov(theta_p, mean Delta_p);  x_p <- a x_p + (1 - a) theta_p

    theta_p is the fragment as all workers last agreed on it. The mean travels while the workers go
    on, one collective per fragment, several at once. One fragment with tau = 0 and a = 0 is DiLoCo.

    Args:
        local_steps: H, steps between two synchronizations of the same fragment.
        fragments: P, consecutive groups of parameter tensors; their times are spread over H.
        overlap: tau, steps from sending a fragment's change to applying the mean; below H.
        mixing: a, how much of its own progress a worker keeps.
        outer_lr: of the outer Nesterov SGD.
        outer_momentum: of the outer Nesterov SGD.

    Roles: worker. Messages: the collective's own.
    Reference: Douillard et al., "Streaming DiLoCo with overlapping communication", 2025,
    algorithm 2; DiLoCo: Douillard et al., 2023.
    Differences: fragments are consecutive tensors, not strided layers; no 4-bit quantization.
    """

    local_steps: int = 16
    fragments: int = 2
    overlap: int = 2
    mixing: float = 0.5
    outer_lr: float = 0.7
    outer_momentum: float = 0.9

    family: ClassVar[str] = "local updates"
    synchronous: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {
        "local_steps": 1,
        "fragments": 1,
        "overlap": 0,
        "mixing": 1.0,
    }

    def validate(self, workers: int) -> None:
        if self.local_steps < 1:
            raise ValueError(f"local_steps is {self.local_steps}; it must be at least 1")
        if not 0 <= self.overlap < self.local_steps:
            raise ValueError(
                f"overlap is {self.overlap}; it must be from 0 to local_steps - 1 = "
                f"{self.local_steps - 1}"
            )
        if not 1 <= self.fragments <= self.local_steps:
            raise ValueError(
                f"fragments is {self.fragments}; it must be from 1 to local_steps = "
                f"{self.local_steps}"
            )
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing is {self.mixing:g}; it must be from 0 to 1")

    async def step(self, node: Node) -> None:
        spans = node.layout.split_spans(self.fragments)
        outers = [
            node.outer(
                f"fragment {p}",
                node.parameters[span],
                torch.optim.SGD,
                lr=self.outer_lr,
                momentum=self.outer_momentum,
                nesterov=self.outer_momentum > 0,
            )
            for p, span in enumerate(spans)
        ]
        gradient = await node.gradient()
        node.apply(gradient)
        t, pending = node.round + 1, node.state(Reductions).pending
        for p, span in enumerate(spans):
            offset = p * self.local_steps // self.fragments
            if t > offset and (t - offset) % self.local_steps == 0:
                change = outers[p].parameters - node.parameters[span]
                pending[p] = node.start(self._reduce(node, change, p))
            if p in pending and (t - offset - self.overlap) % self.local_steps == 0:
                theta = outers[p].step(await pending.pop(p))
                merged = self.mixing * node.parameters[span] + (1 - self.mixing) * theta
                node.load(merged, part=span)

    async def _reduce(self, node: Node, change: Tensor, fragment: int) -> Tensor:
        return await node.all_reduce(change, key=fragment)
