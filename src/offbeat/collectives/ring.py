"""Ring all-reduce: 2(n-1) steps, each of which passes a chunk of 1/n to the next member."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..node import Node
from ..suspensions import Group
from .algorithm import Algorithm, Chunk, Lines, Price, Tag, message_size


def chunk_bounds(size: int, parts: int) -> list[int]:
    """Where a vector of that size is cut into chunks; the first `size % parts` have one more."""
    base, rest = divmod(size, parts)
    bounds = [0]
    for part in range(parts):
        bounds.append(bounds[-1] + base + (part < rest))
    return bounds


async def ring_all_reduce(node: Node, x: Tensor, group: Group, tag: Tag = (0, 0)) -> Tensor:
    """The mean of `x` (any shape) over a group: n-1 steps of reduce-scatter, n-1 of all-gather.

    Each of the 2(n-1) steps passes one chunk of d/n to the next member, so every member sends
    2(n-1)/n of d (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms"). The
    terms of each chunk are added in ring order, beginning with the chunk's own index: the
    result has the same bits everywhere and in every runtime.
    """
    n = len(group)
    values = x.detach().reshape(-1)
    if n == 1:
        return values.clone().view(x.shape)
    here = group.index(node.rank)
    following, preceding = group[(here + 1) % n], group[here - 1]
    chunks = [values[start:end] for start, end in pairwise(chunk_bounds(values.numel(), n))]
    passed = chunks[here]
    for step in range(n - 1):
        node.send(following, Chunk(passed, *tag))
        _, received = await node.recv(Chunk, source=preceding, tag=tag)
        own = chunks[(here - step - 1) % n]
        passed = torch.add(received.values, own, out=node.runtime.buffer(own))
    passed.div_(n)
    chunks[(here + 1) % n] = passed
    for step in range(n - 1):
        node.send(following, Chunk(passed, *tag))
        _, received = await node.recv(Chunk, source=preceding, tag=tag)
        chunks[(here - step) % n] = passed = received.values
    return torch.cat(chunks).view(x.shape)


def ring_mean(values: Sequence[Tensor]) -> Tensor:
    """What `ring_all_reduce` gives every member, bit for bit, from the members' values in order."""
    n = len(values)
    d = values[0].numel()
    # Each member twice, so that no chunk's way round the ring has to wrap.
    ring = torch.stack([value.detach().reshape(-1) for value in (*values, *values)])  # (2n, d)
    result = torch.empty_like(ring[0])
    width, longer = divmod(d, n)
    first, start = 0, 0
    for chunks, size in ((longer, width + 1), (n - longer, width)):
        stop = start + chunks * size
        # The term at [step, chunk] is that of the member `step` places after the chunk's own.
        terms = ring.as_strided((n, chunks, size), (d, d + size, 1), first * d + start)
        total = terms[0].clone()
        for term in terms[1:]:
            total += term
        result[start:stop] = (total.div_(n) if n > 1 else total).view(-1)
        first, start = chunks, stop
    return result.view(values[0].shape)


def ring_price(lines: Lines, hosts: Sequence[int], entered: Sequence[int], values: Tensor) -> Price:
    n = len(hosts)
    bounds = chunk_bounds(values.numel(), n)
    sizes = [message_size(values, end - start) for start, end in pairwise(bounds)]
    finished = lines.ring(hosts, entered, sizes, rounds=2 * (n - 1))
    # Member i passes on every chunk but i + 1 in the first half, every one but i + 2 in the second.
    sent = [2 * sum(sizes) - sizes[(i + 1) % n] - sizes[(i + 2) % n] for i in range(n)]
    following = [(i + 1) % n for i in range(n)]
    return Price(finished=finished.tolist(), sent=sent, first_to=following)


def ring_seconds(n: int, size: float, latency: float, bandwidth: float) -> float:
    return 2 * (n - 1) * (size / n / bandwidth + latency)


RING = Algorithm(
    run=ring_all_reduce,
    mean=ring_mean,
    price=ring_price,
    seconds=ring_seconds,
)
