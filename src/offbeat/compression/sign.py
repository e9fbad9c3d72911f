"""Signs, and one scale for each tensor."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..parameters import Layout
from .compressor import Compressed, Compressor
from .packing import pack, unpack


@dataclass(frozen=True, kw_only=True)
class Sign(Compressor):
    """Q(x) = mean|x| sign(x), tensor by tensor: one bit a coordinate, one scale a tensor.

    It contracts: |Q(x) - x|^2 = |x|^2 - |x|_1^2 / m for each tensor of m numbers. The sign of 0 is
    taken as +1, which changes nothing of that.

    Reference: Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression
    Schemes", ICML 2019, algorithm 1.
    """

    def compress(self, x: Tensor, layout: Layout, rng: random.Random) -> Compressed:
        scales = torch.stack([x[span].abs().sum() / max(1, m) for span, m in _tensors(layout)])
        return Compressed(pack((x >= 0).to(torch.uint8), bits=1), scales)

    def decompress(self, compressed: Compressed, layout: Layout) -> Tensor:
        positive = unpack(compressed.coded, bits=1, count=layout.size)
        x = positive.to(compressed.side.dtype).mul_(2).sub_(1)
        for scale, (span, _) in zip(compressed.side, _tensors(layout), strict=True):
            x[span] *= scale
        return x


def _tensors(layout: Layout) -> list[tuple[slice, int]]:
    """Where each lies, and how many numbers it has."""
    return list(zip(layout.spans, layout.sizes, strict=True))
