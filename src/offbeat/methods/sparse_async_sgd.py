"""Asynchronous SGD that sends the gradients' non-zero coordinates only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..messages import message
from ..node import Node
from .async_sgd import AsyncSGD, Pull

INT32 = torch.iinfo(torch.int32)


@message
class SparsePush:  # worker -> server
    indices: Tensor  # (k,) int32, or int64 where d is too large: coordinates of the server's shard
    values: Tensor  # (k,)
    taken_at: int  # version of the shard in the worker's snapshot


def part_of(indices: Tensor, values: Tensor, span: slice) -> tuple[Tensor, Tensor]:
    """The coordinates within `span` of a sparse vector, counted from its start, and their values.

    `indices` (k,) int64 increase; what is returned has the smallest type that can count the span.
    """
    ends = torch.tensor([span.start, span.stop], device=indices.device)
    start, stop = torch.searchsorted(indices, ends).tolist()
    counted = torch.int32 if span.stop - span.start <= INT32.max else torch.int64
    return (indices[start:stop] - span.start).to(counted), values[start:stop]


def dense(indices: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """The vector, of the shape (d,) of `like`, that is `values` at `indices` and else zero."""
    return torch.zeros_like(like).index_copy_(0, indices.long(), values)


@dataclass(frozen=True, kw_only=True)
class SparseAsyncSGD(AsyncSGD):
    """Asynchronous SGD, x <- x - lr * g(x_{k-tau}), whose gradients travel as indices and values.

    Worth it where most coordinates of a gradient are zero, as of an embedding or a linear model of
    sparse samples; an entry costs an index of four bytes beside its value. The inner optimizer
    steps on the same dense vector as in `AsyncSGD`.

    Roles: worker, server. Messages: SparsePush, Pull.
    Reference: Li et al., "Scaling Distributed Machine Learning with the Parameter Server",
    OSDI 2014.
    Differences: parameters come back whole.
    """

    messages: ClassVar[tuple[type, ...]] = (SparsePush, Pull)

    async def serve(self, node: Node) -> None:
        worker, push = await node.recv(SparsePush)
        gradient = dense(push.indices, push.values, node.parameters)
        node.apply(gradient, taken_at=push.taken_at)
        node.send(worker, Pull(node.parameters, node.version))

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        indices, values = gradient.sparse()
        for shard in node.shards:
            taken_at = gradient.versions[shard.index]
            part = part_of(indices, values, shard.span)
            node.send(shard.server, SparsePush(*part, taken_at))
        for shard in node.shards:
            _, pull = await node.recv(Pull, source=shard.server)
            node.load(pull.parameters, pull.version, shard)
