"""Sharded step: members who keep one x together each add up and step a part of it, in place."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..node import Node
from ..suspensions import Gradient, Group
from .algorithm import Chunk, Tag
from .exchange import exchange, exchange_each
from .ring import chunk_bounds
from .shared import joined_to_send, mean_of, parts_of


async def sharded_step(node: Node, gradient: Gradient, group: Group, tag: Tag) -> None:
    """x <- x - lr * mean_i g_i, where all members' parameters lie in the same memory.

    Whoever has a part of everybody's gradient knows that nobody reads x any more, and steps that
    part; x is whole again when all have said that they have. The bits are those of the ring, and
    the messages as many, and in the same order, as those of `shared_all_reduce`.
    """
    parts = node.layout.even_spans(len(group))
    here = group.index(node.rank)
    cut = [parts_of(gradient.dense, part.start, part.stop) for part in parts]
    own = cut[here]
    outgoing = [own[0] if pieces is own else joined_to_send(node, pieces) for pieces in cut]
    received = await exchange_each(node, [Chunk(part, *tag) for part in outgoing], group, tag)
    others = [chunk.values for chunk in received[here + 1 :] + received[:here]]
    given = len(group) == 2 and node.runtime.is_given(others[0])
    mean = others[0] if given else torch.empty_like(others[0])
    _add_up(own, others, mean, here, parts[here], node.layout.size)
    node._step(mean, (gradient.version,))
    nothing = mean.new_empty(0)
    del received, others, mean  # What the others have lent is theirs again.
    await exchange(node, Chunk(nothing, *tag), group, tag)


def _add_up(
    own: list[Tensor], others: list[Tensor], mean: Tensor, here: int, part: slice, size: int
) -> None:
    """The mean of a part: each number's terms are added in the order of its chunk of the ring."""
    n = len(others) + 1
    start = part.start
    for piece in own:
        for chunk, (first, last) in enumerate(pairwise(chunk_bounds(size, n))):
            low, high = max(first, start), min(last, start + len(piece))
            if low < high:
                span = slice(low - part.start, high - part.start)
                terms = [piece[low - start : high - start], *(other[span] for other in others)]
                turn = (chunk - here) % n
                mean_of(terms[turn:] + terms[:turn], out=mean[span])
        start += len(piece)
