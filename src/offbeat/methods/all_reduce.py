"""All-reduce SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..collectives import Chunk, ring_all_reduce
from ..method import Method
from ..node import Node


@dataclass(frozen=True, kw_only=True)
class AllReduceSGD(Method):
    """Synchronous data-parallel SGD: x <- x - lr * mean_i g_i(x), on every worker.

    Roles: worker. Messages: the collective's own.
    Reference: Goyal et al., "Accurate, Large Minibatch SGD", 2017, eq. (2).
    """

    family: ClassVar[str] = "all-reduce"
    synchronous: ClassVar[bool] = True
    replicated: ClassVar[bool] = True

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        await node.apply_mean(gradient)

    def agreed(self, round: int) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class RingAllReduceSGD(AllReduceSGD):
    """All-reduce SGD that passes the ring's chunks as messages of its own.

    Equal to `AllReduceSGD` to the bit: the same ring, message by message, instead of the
    runtime's collective.

    Roles: worker. Messages: Chunk, 2(n-1) of d/n a step.
    Reference: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009.
    """

    messages: ClassVar[tuple[type, ...]] = (Chunk,)

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        ring = tuple(node.workers)
        mean = await ring_all_reduce(node, gradient.vector, ring, tag=(0, node.round))
        node.apply(mean, taken_at=gradient.version)
