"""Local SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..method import Method
from ..node import Node


@dataclass(frozen=True, kw_only=True)
class LocalSGD(Method):
    """Local SGD: x_i <- x_i - lr * g_i(x_i); every H steps all x_i <- mean_j x_j.

    Args:
        local_steps: H.

    Roles: worker. Messages: the collective's own.
    Reference: Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019, algorithm 1.
    Differences: momentum and other buffers of the inner optimizer stay with their worker, as in
    PyTorch's PostLocalSGDOptimizer. Its PeriodicModelAverager counts from 0 and so averages after
    steps 1, H + 1, 2 H + 1 instead; with `step` set to 1 first it is this.
    """

    local_steps: int = 8

    family: ClassVar[str] = "local updates"
    synchronous: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"local_steps": 1}

    def validate(self, workers: int) -> None:
        if self.local_steps < 1:
            raise ValueError(f"local_steps is {self.local_steps}; it must be at least 1")

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        node.apply(gradient)
        if self.agreed(node.round):
            await self.synchronize(node)

    async def synchronize(self, node: Node) -> None:
        """What follows a worker's H-th step: the averaging."""
        node.load(await node.all_reduce(node.parameters))

    def agreed(self, round: int) -> bool:
        return (round + 1) % self.local_steps == 0
