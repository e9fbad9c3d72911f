"""Stale synchronous parallel SGD."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..messages import message
from ..node import Node
from ..suspensions import PeerLost
from .async_sgd import AsyncSGD, Pull


@message
class Update:  # worker -> server
    gradient: Tensor  # (d,) of the server's shard
    taken_at: int  # version of the shard in the worker's snapshot
    clock: int  # gradients that the worker has now sent


@dataclass
class Clocks:
    """Of a server: how far each worker has come."""

    of: dict[int, int] = field(default_factory=dict[int, int])
    """By worker, the clock of its last update."""
    waiting: list[int] = field(default_factory=list[int])
    """Workers that have not been answered."""


@dataclass(frozen=True, kw_only=True)
class StaleSynchronousSGD(AsyncSGD):
    """SSP: asynchronous SGD whose fastest worker is never more than s clocks ahead of the slowest.

    A worker's clock is the number of its gradients. Each is applied as it comes, as a step of its
    own; a worker of clock c is answered once every live worker's clock is at least c - s, and so
    goes on from all updates of the clocks before that, its own, and maybe newer ones. With s = 0
    all workers take their gradients at the same parameters; without a bound it is asynchronous SGD.

    Args:
        bound: s; None for none.

    Roles: worker, server. Messages: Update, Pull.
    Reference: Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
    Server", NIPS 2013.
    Differences: a worker goes on from the newest parameters, not from a cache that is just fresh
    enough. A late worker begins at a clock that nobody has begun, and may take its first gradient
    one clock further ahead.
    """

    bound: int | None = 3

    messages: ClassVar[tuple[type, ...]] = (Update, Pull)

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.bound is not None and self.bound < 0:
            raise ValueError(f"bound is {self.bound}; it must not be negative")

    def staleness_bound(self, workers: int) -> int | None:
        """Between a worker's pull and its push, each other goes from clock c - s to c + s + 1."""
        return None if self.bound is None else (2 * self.bound + 1) * (workers - 1)

    async def serve(self, node: Node) -> None:
        clocks = node.state(Clocks)
        try:
            worker, update = await node.recv(Update, departures=True)
        except PeerLost as lost:  # The others may have waited for it.
            clocks.waiting = [rank for rank in clocks.waiting if rank != lost.peer]
        else:
            node.apply(update.gradient, taken_at=update.taken_at)
            clocks.of[worker] = update.clock
            clocks.waiting.append(worker)
        slowest = self._slowest(node, clocks)
        ready = [rank for rank in clocks.waiting if self._may_go_on(clocks.of[rank], slowest)]
        clocks.waiting = [rank for rank in clocks.waiting if rank not in ready]
        for rank in ready:
            node.send(rank, Pull(node.parameters, node.version))

    def _may_go_on(self, clock: int, slowest: int) -> bool:
        return self.bound is None or clock - slowest <= self.bound

    def _slowest(self, node: Node, clocks: Clocks) -> int:
        """The least clock of a live worker. One that joins late begins at its first round."""
        live = [rank for rank in node.workers if rank not in node.departed]
        reached = (max(clocks.of.get(r, 0), node.first_round.get(r, 0)) for r in live)
        return min(reached, default=0)

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        for shard in node.shards:
            taken_at = gradient.versions[shard.index]
            node.send(shard.server, Update(gradient.vector[shard.span], taken_at, node.round + 1))
        for shard in node.shards:
            _, pull = await node.recv(Pull, source=shard.server)
            node.load(pull.parameters, pull.version, shard)
