"""All-reduce SGD with compressed gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..collectives import ring_mean
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
        sent = self.compressor.decompress(own, node.layout)
        if self.error_feedback:
            memory.error = wanted - sent
        vectors = [sent] * len(node.workers)
        for worker, compressed in (await self._others(node, own)).items():
            vectors[worker] = self.compressor.decompress(compressed, node.layout)
        node.apply(ring_mean(vectors), taken_at=gradient.version)

    async def _others(self, node: Node, own: Compressed) -> dict[int, Compressed]:
        """This round's message of every other worker.

        In round s each sends to the s-th after it and awaits that of the s-th before: all at once
        would have several senders at one receiver while other receivers are idle.
        """
        n = len(node.workers)
        others: dict[int, Compressed] = {}
        for s in range(1, n):
            node.send((node.rank + s) % n, own)
            before = (node.rank - s) % n
            _, others[before] = await node.recv(Compressed, source=before)
        return others

    def agreed(self, round: int) -> bool:
        return True
