"""Tree all-reduce: sums go up a binomial tree, and the mean comes down it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..node import Node
from ..suspensions import Group
from .algorithm import Algorithm, Chunk, Lines, Price, Tag, message_size


def children(here: int, n: int) -> list[int]:
    """Below member `here`: here + 1, here + 2, here + 4, ... up to its own lowest set bit."""
    below: list[int] = []
    bit = 1
    while here + bit < n and not here & bit:
        below.append(here + bit)
        bit *= 2
    return below


def parent(here: int) -> int:
    """Above a member other than the first: its number without the lowest set bit."""
    return here & (here - 1)


async def tree_all_reduce(node: Node, x: Tensor, group: Group, tag: Tag = (0, 0)) -> Tensor:
    """The mean of `x` (any shape) by a reduction to the first member and a broadcast from it.

    A member adds its children's sums to its own vector, nearest child first, and sends the sum
    up; the mean comes down to the farthest child, the one with most below it, first.
    """
    n = len(group)
    here = group.index(node.rank)
    total = x.detach().reshape(-1).clone()
    below = children(here, n)
    for child in below:
        _, received = await node.recv(Chunk, source=group[child], tag=tag)
        total += received.values
    if here == 0:
        total.div_(n)
    else:
        above = group[parent(here)]
        node.send(above, Chunk(total, *tag))
        _, received = await node.recv(Chunk, source=above, tag=tag)
        total = received.values
    for child in reversed(below):
        node.send(group[child], Chunk(total, *tag))
    return total.view(x.shape)


def tree_mean(values: Sequence[Tensor]) -> Tensor:
    """What `tree_all_reduce` gives every member, bit for bit, from the members' values in order."""
    n = len(values)
    sums = [value.detach().clone() for value in values]
    # Children have higher numbers: from the last member on, everyone's are complete.
    for here in reversed(range(n)):
        for child in children(here, n):
            sums[here] += sums[child]
    return sums[0].div_(n)


def tree_price(lines: Lines, hosts: Sequence[int], entered: Sequence[int], values: Tensor) -> Price:
    n, size = len(hosts), message_size(values)
    ready = list(entered)
    for here in reversed(range(n)):
        # Only its children send to a member, and in the order in which they are ready.
        for child in sorted(children(here, n), key=lambda child: ready[child]):
            _, arrival = lines.transfer(hosts[child], hosts[here], size, ready[child])
            ready[here] = max(ready[here], arrival)
    finished = list(ready)
    for here in range(n):
        for child in reversed(children(here, n)):
            _, finished[child] = lines.transfer(hosts[here], hosts[child], size, finished[here])
    sent = [size * (len(children(i, n)) + (i > 0)) for i in range(n)]
    first_to = [parent(i) if i else children(0, n)[-1] if n > 1 else 0 for i in range(n)]
    return Price(finished=finished, sent=sent, first_to=first_to)


def tree_seconds(n: int, size: float, latency: float, bandwidth: float) -> float:
    """Exact where n is a power of two, at most that otherwise."""
    return 2 * (n - 1).bit_length() * (size / bandwidth + latency)


TREE = Algorithm(
    run=tree_all_reduce,
    mean=tree_mean,
    price=tree_price,
    seconds=tree_seconds,
)
