"""Some coordinates at random."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..parameters import Layout
from .compressor import Compressed, Compressor, generator_of, kept_of, require_fraction


@dataclass(frozen=True, kw_only=True)
class RandomK(Compressor):
    """Q(x) = k coordinates drawn anew each time, all sets of k alike, the others zero.

    It contracts: E|Q(x) - x|^2 = (1 - k/d) |x|^2. Both sides draw the coordinates from one seed,
    which is sent instead of their indices.

    Args:
        fraction: k/d; k is rounded up.
        unbiased: multiply by d/k, so that E Q(x) = x and E|Q(x) - x|^2 = (d/k - 1) |x|^2.

    Raises ValueError for a fraction outside (0, 1].

    Reference: Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, section 2.
    """

    fraction: float = 0.01
    unbiased: bool = False

    def __post_init__(self) -> None:
        require_fraction(self.fraction)

    @property
    def contracts(self) -> bool:
        # k is rounded up, so d/k - 1 is no larger than with the fraction itself.
        return not self.unbiased or 1 / self.fraction - 1 < 1

    def compress(self, x: Tensor, layout: Layout, rng: random.Random) -> Compressed:
        seed = torch.tensor([rng.getrandbits(63)])
        indices = self._drawn(seed, layout.size).to(x.device)
        return Compressed(x[indices], seed)

    def decompress(self, compressed: Compressed, layout: Layout) -> Tensor:
        values = compressed.coded
        indices = self._drawn(compressed.side, layout.size).to(values.device)
        scale = layout.size / len(values) if self.unbiased else 1.0
        return values.new_zeros(layout.size).index_copy_(0, indices, values * scale)

    def _drawn(self, seed: Tensor, size: int) -> Tensor:
        """(k,) int64, all different."""
        order = torch.randperm(size, generator=generator_of(int(seed)))
        return order[: kept_of(size, self.fraction)]
