"""Shared all-reduce: for members on one machine, who read in place what they send each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..node import Node
from ..parameters import Dense, joined
from ..suspensions import Group
from .algorithm import Algorithm, Chunk, Lines, Price, Tag, message_size
from .exchange import exchange, exchange_each
from .ring import chunk_bounds, ring_mean

WHOLE = 2 << 20
"""Bytes of the others' vectors up to which everyone reads them all: half as many waits."""
BLOCK = 1 << 19
"""Numbers that are added and divided while they are in the cache."""


async def shared_all_reduce(
    node: Node, x: Dense, group: Group, tag: Tag = (0, 0), *, read_only: bool = False
) -> Tensor:
    """The mean of `x` (any shape) over a group, by exchanges of everyone with everyone.

    Each member is sent its chunk of d/n by every other, adds the terms, and sends the mean to all:
    as many bytes as in the ring, without passing any on. Small vectors are exchanged whole
    instead, and everyone adds up everything. The terms are added in the order of the ring
    (`ring_all_reduce`), whose bits this gives. If it is `read_only` the caller does not write it.
    """
    if len(group) == 1:
        return joined(x).detach().clone()
    if is_whole(len(group), x.nbytes):
        mean = await _reduce_whole(node, x, group, tag)
    else:
        mean = await _reduce_by_chunks(node, x, group, tag, read_only)
    return mean.view(x.shape)


async def _reduce_whole(node: Node, x: Dense, group: Group, tag: Tag) -> Tensor:
    n, values = len(group), joined(x).detach().reshape(-1)
    vectors = [chunk.values for chunk in await exchange(node, Chunk(values, *tag), group, tag)]
    mean = torch.empty_like(values)
    # Two terms have one sum, whichever comes first.
    bounds = chunk_bounds(len(values), n if n > 2 else 1)
    for first, span in enumerate(itertools.starmap(slice, pairwise(bounds))):
        mean_of([v[span] for v in vectors[first:] + vectors[:first]], out=mean[span])
    return mean


async def _reduce_by_chunks(
    node: Node, x: Dense, group: Group, tag: Tag, read_only: bool
) -> Tensor:
    """Of a vector in pieces only what the others read is joined."""
    n, here = len(group), group.index(node.rank)
    bounds = chunk_bounds(math.prod(x.shape), n)
    chunks = [parts_of(x, start, stop) for start, stop in pairwise(bounds)]
    own = chunks[here]
    outgoing = [
        joined_to_send(node, parts, at=start) if parts is not own else own[0]
        for parts, start in zip(chunks, bounds, strict=False)
    ]
    received = await exchange_each(node, [Chunk(part, *tag) for part in outgoing], group, tag)
    others = [chunk.values for chunk in received[here + 1 :] + received[:here]]
    start, stop = bounds[here : here + 2]
    # Memory that is read and written costs less than some that is read and other that is written.
    given = n == 2 and node.runtime.is_given(others[0])
    mean = others[0] if given else node.runtime.buffer(own[0], stop - start, at=start)
    done = 0
    for part in own:
        span = slice(done, done + len(part))
        mean_of([part, *(other[span] for other in others)], out=mean[span])
        done = span.stop
    means = await exchange(node, Chunk(mean, *tag), group, tag)
    return node.runtime.join([chunk.values for chunk in means], read_only)


def parts_of(x: Dense, start: int, stop: int) -> list[Tensor]:
    """Flat views, one after the other, of what lies from `start` to `stop`."""
    return [x.detach().reshape(-1)[start:stop]] if isinstance(x, Tensor) else x.parts(start, stop)


def joined_to_send(node: Node, parts: Sequence[Tensor], at: int = 0) -> Tensor:
    """Flat tensors one after the other, to be sent to one member without a further copy.

    That one may write to them, unless they were where they had to be before. `at` is where they
    begin in the whole.
    """
    if len(parts) == 1 and node.runtime.is_ready(parts[0]):
        return parts[0]
    size = sum(len(part) for part in parts)
    out = node.runtime.buffer(parts[0], size, at=at, given=True)
    return torch.cat(list(parts), out=out)


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


def is_whole(n: int, nbytes: float) -> bool:
    """Whether n members exchange whole vectors of so many bytes."""
    return (n - 1) * nbytes <= WHOLE


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

    if is_whole(n, values.nbytes):
        exchange([[size] * n] * n)
    else:
        bounds = chunk_bounds(values.numel(), n)
        chunks = [message_size(values, end - start) for start, end in pairwise(bounds)]
        exchange([chunks] * n)
        exchange([[chunk] * n for chunk in chunks])
    return Price(finished=finished, sent=sent, first_to=[(i + 1) % n for i in range(n)])


def shared_seconds(n: int, size: float, latency: float, bandwidth: float) -> float:
    if is_whole(n, size):
        return (n - 1) * (size / bandwidth + latency)
    return 2 * (n - 1) * (size / n / bandwidth + latency)


SHARED = Algorithm(
    run=shared_all_reduce,
    mean=ring_mean,
    price=shared_price,
    seconds=shared_seconds,
    in_step=True,
)
