"""What a compressor is, and what it makes of a vector."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..messages import message
from ..parameters import Layout


@message
class Compressed:
    """A vector (d,) in fewer bytes."""

    coded: Tensor  # what is sent of the coordinates
    side: Tensor  # what it takes to read that: indices, scales, norms or a seed; else (0,)


class Compressor(ABC):
    """A way to send a vector (d,) in fewer bytes, mostly not exactly.

    Subclasses are frozen, keyword-only dataclasses.
    """

    @abstractmethod
    def compress(self, x: Tensor, layout: Layout, rng: random.Random) -> Compressed:
        """`x` (d,), whose tensors lie as `layout` says; all chance is drawn from `rng`."""

    @abstractmethod
    def decompress(self, compressed: Compressed, layout: Layout) -> Tensor:
        """Q(x), a new vector (d,); the same to the bit wherever it is read."""

    @property
    def contracts(self) -> bool:
        """Whether E|Q(x) - x|^2 <= (1 - delta) |x|^2 for every x, with some delta > 0.

        Error feedback and CHOCO stand on it: without it what is left over grows without bound.
        """
        return True


def kept_of(size: int, fraction: float) -> int:
    """k: so many of `size` coordinates, rounded up, so that something is sent of every vector."""
    # What floating point adds to a whole number is no coordinate.
    return min(size, math.ceil(size * fraction - 1e-9))


def require_fraction(fraction: float) -> None:
    """Raise ValueError unless 0 < fraction <= 1."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction:g}; it must be above 0 and at most 1")


def generator_of(seed: int) -> torch.Generator:
    """On the CPU whatever the device of the vector, so that the draws are the same everywhere."""
    return torch.Generator().manual_seed(seed)
