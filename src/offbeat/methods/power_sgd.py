"""PowerSGD: low-rank compression that all-reduces."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import Method
from ..node import Node, hash_of
from ..parameters import Layout


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A parameter tensor that is compressed, as a matrix (n, m), and where it lies."""

    span: slice
    rows: int
    columns: int
    rank: int
    """r, no more than n or m."""


@dataclass
class LowRank:
    """What a worker keeps of each matrix, in their order."""

    errors: list[Tensor] = field(default_factory=list[Tensor])
    """E (n, m): what has not been sent of its own gradients so far."""
    factors: list[Tensor] = field(default_factory=list[Tensor])
    """Q (m, r), where the next power iteration begins; the same on every worker."""


def orthonormal(P: Tensor) -> Tensor:
    """(n, r): orthonormal columns that span those of P (n, r)."""
    # There is no factorization in half precision.
    return torch.linalg.qr(P.to(torch.promote_types(P.dtype, torch.float32))).Q.to(P.dtype)


@dataclass(frozen=True, kw_only=True)
class PowerSGD(Method):
    """All-reduce SGD on a rank-r approximation of every gradient matrix, with error feedback.

    M_i = G_i + E_i;  P = orthonormal(mean_i M_i Q);  Q_i = M_i^T P;  Q <- mean_i Q_i;
    E_i <- M_i - P Q_i^T;  X <- X - lr * P Q^T

    One power iteration a step, which begins with the last step's Q. P and Q are linear in M, so two
    all-reduces carry them; the second needs the first one's result, which is why this is a method
    of its own and no `Compressor`. A tensor (n, ...) is a matrix of n rows. Vectors, and matrices
    that would shrink too little, are averaged as they are.

    Args:
        rank: r.
        min_compression_rate: a matrix is compressed if its numbers are more than so many times
            the (n + m) r of its factors.

    Roles: worker. Messages: the collective's own.
    Reference: Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
    Optimization", NeurIPS 2019, algorithms 1 and 2.
    Differences: min_compression_rate, which PyTorch's hook has too; momentum is the inner
    optimizer's. The hook subtracts P Q^T for E_i, so that ours has over its the sum of all steps'
    P (Q - Q_i)^T. The steps see only the mean of the E_i, which is the same, and P Q_i^T leaves
    nothing behind of how workers differ within the span of P.
    """

    rank: int = 2
    min_compression_rate: float = 2.0

    family: ClassVar[str] = "all-reduce"
    synchronous: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"min_compression_rate": math.inf}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be at least 1")
        if not self.min_compression_rate >= 1:
            raise ValueError(
                f"min_compression_rate is {self.min_compression_rate:g}; it must be at least 1"
            )

    def matrices(self, layout: Layout) -> list[Matrix]:
        """The tensors that are compressed."""
        found: list[Matrix] = []
        for span, shape, size in zip(layout.spans, layout.shapes, layout.sizes, strict=True):
            n = shape[0] if len(shape) > 1 else 0
            m = size // n if n else 0
            r = min(self.rank, n, m)
            if (n + m) * r * self.min_compression_rate < n * m:
                found.append(Matrix(span=span, rows=n, columns=m, rank=r))
        return found

    def first_factors(self, layout: Layout, like: Tensor, seed: int) -> list[Tensor]:
        """Standard normal Q (m, r) of each matrix, the same on every worker."""
        generator = torch.Generator().manual_seed(hash_of((seed, "PowerSGD")))
        return [
            torch.randn(M.columns, M.rank, generator=generator, dtype=like.dtype).to(like.device)
            for M in self.matrices(layout)
        ]

    async def step(self, node: Node) -> None:
        matrices, kept = self.matrices(node.layout), node.state(LowRank)
        if matrices and not kept.factors:
            kept.factors = self.first_factors(node.layout, node.parameters, node.seed)
            kept.errors = [node.parameters.new_zeros(M.rows, M.columns) for M in matrices]
        gradient = await node.gradient()
        mean = gradient.vector.clone()  # This worker's own, until it is averaged.
        others = [mean[span] for span in _without(node.layout, matrices)]
        Ms = [
            mean[matrix.span].view_as(error) + error
            for matrix, error in zip(matrices, kept.errors, strict=True)
        ]
        Ps = [M @ Q for M, Q in zip(Ms, kept.factors, strict=True)]
        means = await _all_reduce(node, [*others, *Ps])
        for other in others:
            other.copy_(means.pop(0))
        if matrices:
            Ps = [orthonormal(P) for P in means]
            Qs = [M.T @ P for M, P in zip(Ms, Ps, strict=True)]
            kept.errors = [M - P @ Q.T for M, P, Q in zip(Ms, Ps, Qs, strict=True)]
            kept.factors = await _all_reduce(node, Qs)
            for matrix, P, Q in zip(matrices, Ps, kept.factors, strict=True):
                mean[matrix.span] = (P @ Q.T).view(-1)
        node.apply(mean, taken_at=gradient.version)

    def agreed(self, round: int) -> bool:
        return True


def _without(layout: Layout, matrices: list[Matrix]) -> list[slice]:
    """Where the tensors lie that are averaged as they are."""
    compressed = [matrix.span for matrix in matrices]
    return [span for span in layout.spans if span not in compressed]


async def _all_reduce(node: Node, tensors: list[Tensor]) -> list[Tensor]:
    """The mean over all workers of each tensor, in one collective."""
    mean = await node.all_reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    parts = mean.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
