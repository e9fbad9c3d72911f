"""Server all-reduce: all send to the group's first member, which answers with the mean."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..node import Node
from ..suspensions import Group
from .algorithm import Algorithm, Chunk, Lines, Price, Tag, mean_in_order, message_size


async def server_all_reduce(node: Node, x: Tensor, group: Group, tag: Tag = (0, 0)) -> Tensor:
    """The mean of `x` (any shape), added up by the first member in the group's order."""
    first, *others = group
    vector = x.detach().reshape(-1)
    if node.rank != first:
        node.send(first, Chunk(vector, *tag))
        _, received = await node.recv(Chunk, source=first, tag=tag)
        return received.values.view(x.shape)
    vectors = [vector]
    for other in others:
        _, received = await node.recv(Chunk, source=other, tag=tag)
        vectors.append(received.values)
    mean = mean_in_order(vectors)
    for other in others:
        node.send(other, Chunk(mean, *tag))
    return mean.view(x.shape)


def server_price(
    lines: Lines, hosts: Sequence[int], entered: Sequence[int], values: Tensor
) -> Price:
    n, size = len(hosts), message_size(values)
    finished = list(entered)
    for i in sorted(range(1, n), key=lambda i: entered[i]):
        _, arrival = lines.transfer(hosts[i], hosts[0], size, entered[i])
        finished[0] = max(finished[0], arrival)
    for i in range(1, n):
        _, finished[i] = lines.transfer(hosts[0], hosts[i], size, finished[0])
    sent = [(n - 1) * size, *[size] * (n - 1)]
    return Price(finished=finished, sent=sent, first_to=[min(1, n - 1), *[0] * (n - 1)])


def server_seconds(n: int, size: float, latency: float, bandwidth: float) -> float:
    return 2 * ((n - 1) * size / bandwidth + latency) if n > 1 else 0.0


SERVER = Algorithm(
    run=server_all_reduce,
    mean=mean_in_order,
    price=server_price,
    seconds=server_seconds,
)
