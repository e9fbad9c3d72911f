"""Asynchronous SGD whose server hands the minibatches out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..messages import message
from ..method import ServerMethod
from ..node import Node


@message
class Result:  # worker -> server
    gradient: Tensor  # (d,) of the server's shard; (0,) from a worker that begins
    taken_at: int  # version of the shard in the worker's snapshot


@message
class Work:  # server -> worker
    parameters: Tensor  # (d,) of the server's shard
    version: int
    batch: Tensor  # (b,) sample numbers of the next minibatch; (0,) from servers but the first


@dataclass
class Dispatch:
    """Of the first server: which minibatches of the common order are where."""

    following: int = 0
    """Number of the first minibatch that nobody has been given."""
    out: dict[int, int] = field(default_factory=dict[int, int])
    """By worker, the minibatch whose gradient it owes."""
    returned: list[int] = field(default_factory=list[int])
    """What departed workers owed."""

    def take_back(self, worker: int) -> None:
        if worker in self.out:
            self.returned.append(self.out.pop(worker))

    def hand_out(self, worker: int) -> int:
        if self.returned:
            number = self.returned.pop(0)
        else:
            number, self.following = self.following, self.following + 1
        self.out[worker] = number
        return number


@dataclass
class Assignment:
    """Of a worker: the minibatch that it is to compute next."""

    batch: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class DispatchedAsyncSGD(ServerMethod):
    """Asynchronous SGD, x <- x - lr * g(x_{k-tau}), over one common order of the samples.

    With the parameters the first server sends the sample numbers of the next minibatch, so within
    an epoch no sample is used twice, whoever is fast. What a departed worker owed is handed out
    again. One worker sees the minibatches that serial SGD sees.

    Roles: worker, server. Messages: Result, Work.
    Reference: Li et al., "Scaling Distributed Machine Learning with the Parameter Server",
    OSDI 2014.
    Differences: the workers hold all samples and are sent their numbers only.
    """

    messages: ClassVar[tuple[type, ...]] = (Result, Work)
    serial: ClassVar[dict[str, Any] | None] = {"servers": 1}
    chooses_samples: ClassVar[bool] = True

    async def serve(self, node: Node) -> None:
        worker, result = await node.recv(Result)
        begins = len(result.gradient) == 0
        if not begins:
            node.apply(result.gradient, taken_at=result.taken_at)
        batch = torch.empty(0, dtype=torch.int64)
        if node.rank == node.servers[0]:
            batch = node.minibatch(self._next(node, worker, begins=begins))
        node.send(worker, Work(node.parameters, node.version, batch))

    def _next(self, node: Node, worker: int, *, begins: bool) -> int:
        dispatch = node.state(Dispatch)
        if not begins:
            del dispatch.out[worker]
        # Who begins anew has lost what it was given before.
        for other in sorted(dispatch.out):
            if other == worker or not node.is_live(other):
                dispatch.take_back(other)
        return dispatch.hand_out(worker)

    async def step(self, node: Node) -> None:
        assigned = node.state(Assignment)
        if assigned.batch is None:
            for shard in node.shards:
                node.send(shard.server, Result(node.parameters[:0], node.versions[shard.index]))
            assigned.batch = await self._assignment(node)
        gradient = await node.gradient(batch=assigned.batch)
        for shard in node.shards:
            taken_at = gradient.versions[shard.index]
            node.send(shard.server, Result(gradient.vector[shard.span], taken_at))
        assigned.batch = await self._assignment(node)

    async def _assignment(self, node: Node) -> Tensor:
        """Take every server's parameters; returns the sample numbers (b,) to go with them."""
        batches: list[Tensor] = []
        for shard in node.shards:
            _, work = await node.recv(Work, source=shard.server)
            node.load(work.parameters, work.version, shard)
            batches.append(work.batch)
        return batches[0]
