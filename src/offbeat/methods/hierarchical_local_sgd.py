"""Hierarchical Local SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..node import Node
from .local_sgd import LocalSGD


@dataclass(frozen=True, kw_only=True)
class HierarchicalLocalSGD(LocalSGD):
    """Hierarchical Local SGD: averaging within groups often, and over all workers seldom.

    x_i <- x_i - lr * g_i(x_i);  every H steps x_i <- the mean of i's group, and every H * H_b steps
    the mean of all workers instead.

    Groups are consecutive ranks, such as the workers of one machine; the last may be smaller.
    H_b = 1, or one group of all, is Local SGD.

    Args:
        local_steps: H.
        block_steps: H_b, averagings of a group to one of all workers, which is the last of them.
        group_size: workers of a group.

    Roles: worker. Messages: the collective's own.
    Reference: Lin et al., "Don't Use Large Mini-Batches, Use Local SGD", ICLR 2020, appendix.
    Differences: momentum and other buffers of the inner optimizer stay with their worker, as in
    PyTorch's PostLocalSGDOptimizer. Its HierarchicalModelAverager counts from 0 and so averages
    over all after step 1, and one step later than this from then on; with `step` set to 1 first it
    is this.
    """

    local_steps: int = 4
    block_steps: int = 4
    group_size: int = 2

    serial: ClassVar[dict[str, Any] | None] = {"local_steps": 1}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.block_steps < 1:
            raise ValueError(f"block_steps is {self.block_steps}; it must be at least 1")
        if self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}; it must be at least 1")

    async def step(self, node: Node) -> None:
        await super().step(node)
        if (node.round + 1) % self.local_steps == 0 and not self.agreed(node.round):
            node.load(await node.all_reduce(node.parameters, group=self.group_of(node)))

    def group_of(self, node: Node) -> range:
        """The ranks that this worker averages with every H steps."""
        first = node.rank // self.group_size * self.group_size
        return node.workers[first : first + self.group_size]

    def agreed(self, round: int) -> bool:
        return (round + 1) % (self.local_steps * self.block_steps) == 0
