"""Numbers of 16 bits."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..parameters import Layout
from .compressor import Compressed, Compressor


@dataclass(frozen=True, kw_only=True)
class Half(Compressor):
    """Q(x) = x rounded to 16 bits; what is beyond their range becomes their largest number.

    Args:
        dtype: "float16" has 11 significant bits up to 65504, "bfloat16" 8 bits up to 3e38.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"

    def compress(self, x: Tensor, layout: Layout, rng: random.Random) -> Compressed:
        kind: torch.dtype = getattr(torch, self.dtype)
        largest = torch.finfo(kind).max
        return Compressed(x.clamp(-largest, largest).to(kind), x.new_empty(0))

    def decompress(self, compressed: Compressed, layout: Layout) -> Tensor:
        return compressed.coded.to(compressed.side.dtype, copy=True)
