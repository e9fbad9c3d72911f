"""The largest coordinates."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..parameters import Layout
from .compressor import Compressed, Compressor, kept_of, require_fraction

INT32 = torch.iinfo(torch.int32)


@dataclass(frozen=True, kw_only=True)
class TopK(Compressor):
    """Q(x) = the k coordinates of largest modulus in the whole vector, the others zero.

    It contracts: |Q(x) - x|^2 <= (1 - k/d) |x|^2. An entry costs an index of 4 bytes (8 where d is
    too large for that) beside its value.

    Args:
        fraction: k/d; k is rounded up.

    Raises ValueError for a fraction outside (0, 1].

    Reference: Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, section 2.
    """

    fraction: float = 0.01

    def __post_init__(self) -> None:
        require_fraction(self.fraction)

    def compress(self, x: Tensor, layout: Layout, rng: random.Random) -> Compressed:
        k = kept_of(len(x), self.fraction)
        indices = x.abs().topk(k, sorted=False).indices.sort().values
        counted = torch.int32 if len(x) <= INT32.max else torch.int64
        return Compressed(x[indices], indices.to(counted))

    def decompress(self, compressed: Compressed, layout: Layout) -> Tensor:
        x = compressed.coded.new_zeros(layout.size)
        return x.index_copy_(0, compressed.side.long(), compressed.coded)
