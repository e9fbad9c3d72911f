"""A mean of vectors that travel as numbers of four bits: a sign, three of exponent, no mantissa."""

from __future__ import annotations

import torch
from torch import Tensor

from ..messages import message
from ..node import Node
from ..suspensions import Group
from .algorithm import Tag, mean_in_order

LEVELS = (0.0, *(2.0**exponent for exponent in range(-6, 1)))
"""The magnitudes, as shares of the vector's largest."""


@message
class FourBits:
    codes: Tensor  # (ceil(d / 2),) uint8: two numbers in each, the first in the lower half
    scale: float  # the largest magnitude
    key: int
    sequence: int

    @property
    def tag(self) -> Tag:
        return (self.key, self.sequence)


def to_e3m0(x: Tensor) -> tuple[Tensor, float]:
    """The codes (ceil(d / 2),) uint8 of a vector (d,), each its nearest number, and their scale."""
    scale = x.abs().max() if len(x) else x.new_zeros(())
    share = x.abs() / scale if scale > 0 else torch.zeros_like(x)
    mantissa, exponent = torch.frexp(share)  # share = mantissa * 2^exponent, mantissa in [1/2, 1)
    level = 6 + exponent + (mantissa >= 0.75)
    level = torch.where(share < LEVELS[1] / 2, 0, level.clamp(1, 7))
    codes = (level + 8 * (x < 0)).to(torch.uint8)
    if len(codes) % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    return codes[0::2] | codes[1::2] << 4, scale.item()


def from_e3m0(codes: Tensor, scale: float, like: Tensor) -> Tensor:
    """The vector of these codes, of the shape (d,) and the type of `like`."""
    numbers = like.new_tensor([*LEVELS, *(-level for level in LEVELS)])
    halves = torch.stack([codes & 15, codes >> 4], dim=1).reshape(-1)[: len(like)]
    return numbers[halves.long()] * scale


async def e3m0_mean(node: Node, x: Tensor, group: Group, tag: Tag) -> Tensor:
    """The mean of `x` (d,) over a group, each vector rounded to four bits; added up in x's type.

    In round s each member sends to the s-th after it, so every one sends (n-1) d / 2 bytes. It
    takes its own vector rounded too: all come to the same mean.
    """
    n, here = len(group), group.index(node.rank)
    codes, scale = to_e3m0(x)
    vectors = [from_e3m0(codes, scale, x)] * n
    for s in range(1, n):
        before = (here - s) % n
        node.send(group[(here + s) % n], FourBits(codes, scale, *tag))
        _, received = await node.recv(FourBits, source=group[before], tag=tag)
        vectors[before] = from_e3m0(received.codes, received.scale, x)
    return mean_in_order(vectors)
