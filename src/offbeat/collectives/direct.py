"""Direct all-reduce: everyone sends its whole vector to everyone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..node import Node
from ..suspensions import Group
from .algorithm import Algorithm, Chunk, Lines, Price, Tag, mean_in_order, message_size
from .exchange import exchange


async def direct_all_reduce(node: Node, x: Tensor, group: Group, tag: Tag = (0, 0)) -> Tensor:
    """The mean of `x` (any shape), in the rounds of `exchange`.

    Every member sends (n-1) d and holds all n vectors, which it adds in the group's order.
    """
    chunks = await exchange(node, Chunk(x.detach().reshape(-1), *tag), group, tag)
    return mean_in_order([chunk.values for chunk in chunks]).view(x.shape)


def direct_price(
    lines: Lines, hosts: Sequence[int], entered: Sequence[int], values: Tensor
) -> Price:
    """Exact where all enter at one instant, and every round's receivers differ.

    Otherwise messages of two rounds may be sent to one receiver at the same instant, in an order
    that the seed decides.
    """
    n, size = len(hosts), message_size(values)
    finished = list(entered)
    for s in range(1, n):
        sent = [lines.transfer(hosts[i], hosts[(i + s) % n], size, finished[i]) for i in range(n)]
        finished = [max(finished[i], sent[(i - s) % n][1]) for i in range(n)]
    following = [(i + 1) % n for i in range(n)]
    return Price(finished=finished, sent=[(n - 1) * size] * n, first_to=following)


def direct_seconds(n: int, size: float, latency: float, bandwidth: float) -> float:
    return (n - 1) * (size / bandwidth + latency)


DIRECT = Algorithm(
    run=direct_all_reduce,
    mean=mean_in_order,
    price=direct_price,
    seconds=direct_seconds,
    in_step=True,
)
