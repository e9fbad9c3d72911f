"""Small whole numbers, several to a byte."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = (1, 2, 4, 8)
"""Bits of a number that fill bytes."""


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Numbers (m,) uint8 below 2^bits as m * bits / 8 bytes, rounded up; the first lies lowest."""
    in_a_byte = 8 // bits
    padded = F.pad(numbers, (0, -len(numbers) % in_a_byte)).view(-1, in_a_byte)
    return (padded << _shifts(bits, numbers)).sum(dim=1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` numbers (m,) uint8 that `pack` was given."""
    numbers = (packed[:, None] >> _shifts(bits, packed)) & (2**bits - 1)
    return numbers.view(-1)[:count]


def _shifts(bits: int, like: Tensor) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=like.device)
