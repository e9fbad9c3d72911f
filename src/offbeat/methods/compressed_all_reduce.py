"""All-reduce SGD with compressed gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..collectives import exchange, ring_mean
from ..compression import Compressed, Compressor, Identity, TopK
from ..method import Method
from ..node import Node


@dataclass
class ErrorMemory:
    error: Tensor | None = None
    """e (d,): what this worker has not sent of its gradients so far; None is zero."""


@dataclass(frozen=True, kw_only=True)
class CompressedAllReduceSGD(Method):
    """Synchronous SGD on compressed gradients, x <- x - lr * mean_i Q(g_i + e_i), on every worker.

    Error feedback keeps what compression leaves out, e_i <- g_i + e_i - Q(g_i + e_i), so that it is
    sent later: the sum of all that was sent and of e_i is the sum of all gradients. Every worker
    sends its Q(g_i + e_i) to every other, as sums of compressed vectors are seldom so compressed.

    Args:
        compressor: Q. With error feedback it has to contract.
        error_feedback: without it e_i stays zero, for a Q that is unbiased, such as `QSGD`.

    Roles: worker. Messages: Compressed, n-1 of them a step.
    Reference: Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression
    Schemes", ICML 2019, algorithm 2; Stich et al., "Sparsified SGD with Memory", NeurIPS 2018,
    algorithm 1.
    Differences: e_i holds gradients instead of steps lr * g_i, the same while lr is constant;
    momentum acts on the mean. The mean is added up in the order of `AllReduceSGD`, whose bits
    `Identity` gives.
    """

    compressor: Compressor = field(default_factory=TopK)
    error_feedback: bool = True

    family: ClassVar[str] = "all-reduce"
    messages: ClassVar[tuple[type, ...]] = (Compressed,)
    synchronous: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"compressor": Identity()}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.error_feedback and not self.compressor.contracts:
            raise ValueError(
                f"error feedback needs a compressor that contracts, and {self.compressor} does "
                "not: what is left out would grow without bound; turn error_feedback off"
            )

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        memory = node.state(ErrorMemory)
        wanted = gradient.vector if memory.error is None else gradient.vector + memory.error
        own = self.compressor.compress(wanted, node.layout, node.rng)
        everyone = await exchange(node, own, node.workers)
        vectors = [self.compressor.decompress(each, node.layout) for each in everyone]
        if self.error_feedback:
            memory.error = wanted - vectors[node.rank]
        node.apply(ring_mean(vectors), taken_at=gradient.version)

    def agreed(self, round: int) -> bool:
        return True
