"""Whole-ring all-reduce: every member's whole vector goes once round the ring."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..node import Node
from ..suspensions import Group
from .algorithm import Algorithm, Chunk, Lines, Price, Tag, mean_in_order, message_size


async def whole_ring_all_reduce(node: Node, x: Tensor, group: Group, tag: Tag = (0, 0)) -> Tensor:
    """The mean of `x` (any shape): in n-1 steps each member passes on the vector it got last.

    Every member sends (n-1) d, n/2 times what the ring of chunks does, and holds all n vectors,
    which it adds in the group's order.
    """
    n = len(group)
    here = group.index(node.rank)
    following, preceding = group[(here + 1) % n], group[here - 1]
    vectors = [x.detach().reshape(-1)] * n
    for step in range(n - 1):
        node.send(following, Chunk(vectors[(here - step) % n], *tag))
        _, received = await node.recv(Chunk, source=preceding, tag=tag)
        vectors[(here - step - 1) % n] = received.values
    return mean_in_order(vectors).view(x.shape)


def whole_ring_price(
    lines: Lines, hosts: Sequence[int], entered: Sequence[int], values: Tensor
) -> Price:
    n, size = len(hosts), message_size(values)
    finished = lines.ring(hosts, entered, [size] * n, rounds=n - 1)
    following = [(i + 1) % n for i in range(n)]
    return Price(finished=finished.tolist(), sent=[(n - 1) * size] * n, first_to=following)


def whole_ring_seconds(n: int, size: float, latency: float, bandwidth: float) -> float:
    return (n - 1) * (size / bandwidth + latency)


WHOLE_RING = Algorithm(
    run=whole_ring_all_reduce,
    mean=mean_in_order,
    price=whole_ring_price,
    seconds=whole_ring_seconds,
)
