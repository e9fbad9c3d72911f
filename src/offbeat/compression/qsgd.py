"""Stochastic quantization."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..parameters import Layout
from .compressor import Compressed, Compressor, generator_of
from .packing import WIDTHS, pack, unpack


def quantized(x: Tensor, norm: Tensor, levels: int, uniform: Tensor) -> Tensor:
    """Signed levels l in [-s, s] with E l = s x / |x|: those beside s x / |x|, one of them drawn.

    x (b, n) in rows with norms (b, 1); s = `levels`; `uniform` (b, n) is drawn from [0, 1).
    """
    ratio = levels * x.abs() / norm.where(norm > 0, 1.0)
    below = ratio.floor()
    # Where the norm was rounded down, the only coordinate of a row comes above s.
    return x.sign() * (below + (uniform < ratio - below)).clamp_(max=levels)


@dataclass(frozen=True, kw_only=True)
class QSGD(Compressor):
    """Q(x) = |x| sign(x) l / s in buckets of n coordinates, l drawn so that E Q(x) = x.

    l is one of the two whole numbers beside s |x_k| / |x|, with |x| the bucket's 2-norm. Then
    E|Q(x) - x|^2 <= w |x|^2, where w = min(n / s^2, sqrt(n) / s).

    Args:
        bits: of a coordinate, 2, 4 or 8: s = 2^(bits - 1) - 1 levels of either sign.
        bucket: n, consecutive coordinates that share a norm.
        unbiased: if not, Q is divided by 1 + w, and contracts however few the bits are:
            E|Q(x) - x|^2 <= (1 - 1 / (1 + w)) |x|^2.

    Raises ValueError for other numbers of bits, or a bucket below 1.

    Reference: Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and
    Encoding", NIPS 2017, section 3; divided by 1 + w: Koloskova et al., "Decentralized Stochastic
    Optimization and Gossip Algorithms with Compressed Communication", ICML 2019.
    Differences: levels of equal width instead of Elias codes.
    """

    bits: int = 8
    bucket: int = 512
    unbiased: bool = True

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS[1:]:
            raise ValueError(f"bits is {self.bits}; a sign and its levels take 2, 4 or 8 bits")
        if self.bucket < 1:
            raise ValueError(f"bucket is {self.bucket}; it must be at least 1")

    @property
    def levels(self) -> int:
        """s."""
        return 2 ** (self.bits - 1) - 1

    @property
    def variance(self) -> float:
        """w: the bound of E|Q(x) - x|^2 / |x|^2 while unbiased."""
        return min(self.bucket / self.levels**2, math.sqrt(self.bucket) / self.levels)

    @property
    def contracts(self) -> bool:
        return not self.unbiased or self.variance < 1

    def compress(self, x: Tensor, layout: Layout, rng: random.Random) -> Compressed:
        # Half precision has too few bits for 127 levels and a chance between two of them.
        rows = self._rows(x.to(torch.promote_types(x.dtype, torch.float32)))
        generator = generator_of(rng.getrandbits(63))
        uniform = torch.rand(rows.shape, generator=generator, dtype=rows.dtype).to(x.device)
        norms = rows.norm(dim=1, keepdim=True).to(x.dtype)  # What the reader will have.
        signed = quantized(rows, norms, self.levels, uniform)
        shifted = (signed + self.levels).to(torch.uint8).view(-1)[: len(x)]
        return Compressed(pack(shifted, self.bits), norms.view(-1))

    def decompress(self, compressed: Compressed, layout: Layout) -> Tensor:
        norms = compressed.side[:, None]
        shifted = unpack(compressed.coded, self.bits, layout.size)
        signed = shifted.to(norms.dtype) - self.levels
        scale = self.levels if self.unbiased else self.levels * (1 + self.variance)
        return (self._rows(signed) * (norms / scale)).view(-1)[: layout.size]

    def _rows(self, x: Tensor) -> Tensor:
        """(buckets, n), the last filled up with zeros."""
        return F.pad(x, (0, -len(x) % self.bucket)).view(-1, self.bucket)
