"""Numbers of four bits: a sign, three of exponent, no mantissa."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..parameters import Layout
from .compressor import Compressed, Compressor
from .packing import pack, unpack

LEVELS = (0.0, *(2.0**exponent for exponent in range(-6, 1)))
"""The magnitudes, as shares of the vector's largest."""


@dataclass(frozen=True, kw_only=True)
class E3M0(Compressor):
    """Q(x)_k = the nearest to x_k of 0 and +-2^-6, ..., +-2^0 times the largest modulus in x.

    It contracts: the largest is exact, and no other is off by more than its own modulus.

    Reference: Douillard et al., "Streaming DiLoCo with overlapping communication", 2025.
    Differences: the largest modulus is sent along, so that no vector is too large or too small.
    """

    def compress(self, x: Tensor, layout: Layout, rng: random.Random) -> Compressed:
        largest = x.abs().amax(dim=0, keepdim=True) if len(x) else x.new_zeros(1)
        share = x.abs() / largest.where(largest > 0, 1.0)
        mantissa, exponent = torch.frexp(share)  # share = mantissa * 2^exponent, from 1/2 to 1
        level = 6 + exponent + (mantissa >= 0.75)
        level = torch.where(share < LEVELS[1] / 2, 0, level.clamp(1, 7))
        return Compressed(pack((level + 8 * (x < 0)).to(torch.uint8), bits=4), largest)

    def decompress(self, compressed: Compressed, layout: Layout) -> Tensor:
        largest = compressed.side
        numbers = largest.new_tensor([*LEVELS, *(-level for level in LEVELS)])
        return numbers[unpack(compressed.coded, bits=4, count=layout.size).long()] * largest
