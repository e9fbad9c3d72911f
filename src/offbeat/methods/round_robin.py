"""Asynchronous SGD whose server takes the workers in turn."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from ..node import Node
from ..suspensions import PeerLost
from .async_sgd import AsyncSGD, Pull, Push


@dataclass
class Turn:
    """Of a server: whose gradient it takes next."""

    worker: int = 0


@dataclass(frozen=True, kw_only=True)
class RoundRobinSGD(AsyncSGD):
    """Delayed SGD: the server applies the workers' gradients in turn, x <- x - lr * g(x_{k-tau}).

    From the second turn on the staleness of n workers is exactly n - 1. A worker is answered when
    its turn has been; those that depart are left out.

    Roles: worker, server. Messages: Push, Pull.
    Reference: Langford, Smola and Zinkevich, "Slow Learners are Fast", NIPS 2009, algorithm 1.
    Differences: the learning rate is that of the schedule.
    """

    def staleness_bound(self, workers: int) -> int | None:
        return workers - 1

    async def serve(self, node: Node) -> None:
        turn = node.state(Turn)
        with contextlib.suppress(PeerLost):
            worker, push = await node.recv(Push, source=self._next_of(node, turn.worker))
            turn.worker = (worker + 1) % len(node.workers)
            node.apply(push.gradient, taken_at=push.taken_at)
            node.send(worker, Pull(node.parameters, node.version))

    def _next_of(self, node: Node, first: int) -> int | None:
        """The first live worker from that one on; None if nobody is left."""
        workers = [*node.workers[first:], *node.workers[:first]]
        return next((worker for worker in workers if node.is_live(worker)), None)
