"""Shared all-reduce: for members on one machine, who read in place what they send each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..node import Node
from ..suspensions import Group
from .algorithm import Algorithm, Chunk, Lines, Price, Tag, message_size
from .ring import chunk_bounds, ring_mean

WHOLE = 1 << 20
"""Bytes of the others' vectors up to which everyone reads them all: half as many waits."""
BLOCK = 1 << 19
"""Numbers that are added and divided while they are in the cache."""


async def shared_all_reduce(node: Node, x: Tensor, group: Group, tag: Tag = (0, 0)) -> Tensor:
    """The mean of `x` (any shape) over a group, by exchanges of everyone with everyone.

    Each member is sent its chunk of d/n by every other, adds the terms, and sends the mean to all:
    as many bytes as in the ring, without passing any on. Two members, or small vectors, are
    exchanged whole instead, and everyone adds up everything. The terms are added in the order of
    the ring (`ring_all_reduce`), whose bits this gives.
    """
    n = len(group)
    values = x.detach().reshape(-1)
    if n == 1:
        return values.clone().view(x.shape)
    here = group.index(node.rank)
    # Two terms have one sum, whichever comes first.
    bounds = chunk_bounds(len(values), n) if n > 2 else [0, len(values)]
    spans = [slice(start, end) for start, end in pairwise(bounds)]
    if _is_whole(n, values.nbytes):
        vectors = await _exchange(node, [values] * n, group, tag)
        result = torch.empty_like(values)
        if len(spans) == 1:
            mean_of(vectors, out=result)
        else:
            for first, span in enumerate(spans):
                mean_of([v[span] for v in vectors[first:] + vectors[:first]], out=result[span])
    else:
        terms = await _exchange(node, [values[span] for span in spans], group, tag)
        mean = node.runtime.buffer(terms[here])
        mean_of(terms[here:] + terms[:here], out=mean)
        result = torch.cat(await _exchange(node, [mean] * n, group, tag))
    return result.view(x.shape)


async def _exchange(node: Node, outgoing: Sequence[Tensor], group: Group, tag: Tag) -> list[Tensor]:
    """Send one tensor to each member, and await one from each; in the order of the group.

    In round s each sends to the s-th after it and awaits from the s-th before it, so that no two
    send to one.
    """
    n = len(group)
    here = group.index(node.rank)
    received = list(outgoing)
    for s in range(1, n):
        after, before = (here + s) % n, here - s
        node.send(group[after], Chunk(outgoing[after], *tag))
        _, chunk = await node.recv(Chunk, source=group[before], tag=tag)
        received[before] = chunk.values
    return received


def mean_of(terms: Sequence[Tensor], out: Tensor) -> None:
    """out <- (((t_0 + t_1) + t_2) + ...) / n, all (d,), in one pass over memory."""
    if len(out) > BLOCK:
        for start in range(0, len(out), BLOCK):
            span = slice(start, start + BLOCK)
            mean_of([term[span] for term in terms], out=out[span])
        return
    n = len(terms)
    first, second, *others = terms
    torch.add(first, second, out=out)
    for other in others:
        out += other
    if n & (n - 1):
        out /= n
    else:
        out *= 1 / n  # The same bits, without the cost of a division.


def _is_whole(n: int, nbytes: float) -> bool:
    return n == 2 or (n - 1) * nbytes <= WHOLE


def shared_price(
    lines: Lines, hosts: Sequence[int], entered: Sequence[int], values: Tensor
) -> Price:
    """Exact where all enter at one instant, as that of the direct all-reduce is."""
    n, size = len(hosts), message_size(values)
    finished = list(entered)
    sent = [0] * n

    def exchange(sizes: Sequence[Sequence[int]]) -> None:
        """`sizes[i][j]`: of the message of member i to member j."""
        for s in range(1, n):
            ended = [0] * n
            for i in range(n):
                to = (i + s) % n
                _, ended[to] = lines.transfer(hosts[i], hosts[to], sizes[i][to], finished[i])
                sent[i] += sizes[i][to]
            finished[:] = map(max, finished, ended)

    if _is_whole(n, values.nbytes):
        exchange([[size] * n] * n)
    else:
        bounds = chunk_bounds(values.numel(), n)
        chunks = [message_size(values, end - start) for start, end in pairwise(bounds)]
        exchange([chunks] * n)
        exchange([[chunk] * n for chunk in chunks])
    return Price(finished=finished, sent=sent, first_to=[(i + 1) % n for i in range(n)])


def shared_seconds(n: int, size: float, latency: float, bandwidth: float) -> float:
    if _is_whole(n, size):
        return (n - 1) * (size / bandwidth + latency)
    return 2 * (n - 1) * (size / n / bandwidth + latency)


SHARED = Algorithm(
    run=shared_all_reduce,
    mean=ring_mean,
    price=shared_price,
    seconds=shared_seconds,
    in_step=True,
)
