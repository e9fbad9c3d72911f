"""A mean of vectors that travel compressed."""

from __future__ import annotations

from torch import Tensor

from ..compression import Compressed, Compressor
from ..messages import message
from ..node import Node
from ..parameters import Layout
from ..suspensions import Group
from .algorithm import Tag, mean_in_order
from .exchange import exchange


@message
class CompressedVector:
    coded: Tensor  # as in Compressed
    side: Tensor
    key: int
    sequence: int

    @property
    def tag(self) -> Tag:
        return (self.key, self.sequence)


async def compressed_mean(
    node: Node, x: Tensor, compressor: Compressor, layout: Layout, group: Group, tag: Tag
) -> Tensor:
    """The mean of Q(x) over a group; `x` (d,) lies as `layout` says. Added up in x's type.

    Every member sends its own to every other, and takes what it sends itself, not its x: all come
    to the same mean.
    """
    own = compressor.compress(x, layout, node.rng)
    everyone = await exchange(node, CompressedVector(own.coded, own.side, *tag), group, tag)
    return mean_in_order(
        [compressor.decompress(Compressed(each.coded, each.side), layout) for each in everyone]
    )
