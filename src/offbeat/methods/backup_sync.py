"""Synchronous SGD with backup workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..collectives import ring_mean
from ..node import Node
from ..suspensions import PeerLost
from .async_sgd import AsyncSGD, Pull, Push


@dataclass
class Arrived:
    """Of the server: this step's gradients, by worker, and who waits for the step."""

    pushes: dict[int, Push] = field(default_factory=dict[int, Push])
    waiting: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, kw_only=True)
class BackupSyncSGD(AsyncSGD):
    """Synchronous SGD with b backups: x <- x - lr * mean of the first N of n = N + b gradients.

    The server waits for the first N gradients of its present parameters and answers their workers
    when the step is made. A gradient that comes later is dropped, and its worker goes on from the
    present parameters. b = 0 is synchronous SGD. Of fewer than N live workers all are needed.

    Args:
        backups: b, how many of the workers a step goes without; below the number of workers.

    Roles: worker, server. Messages: Push, Pull.
    Reference: Chen et al., "Revisiting Distributed Synchronous SGD", 2016.
    Differences: one server, which says for all parameters who came first.
    """

    backups: int = 1

    serial: ClassVar[dict[str, Any] | None] = {"backups": 0}
    unequal_rounds: ClassVar[bool] = True

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if not 0 <= self.backups < workers:
            raise ValueError(
                f"backups is {self.backups}; it must be from 0 to below the number of workers, "
                f"{workers}"
            )
        if self.servers != 1:
            raise ValueError(
                f"servers is {self.servers}; BackupSyncSGD needs one, because several would make "
                "their steps of different workers' gradients"
            )

    def staleness_bound(self, workers: int) -> int | None:
        return 0

    async def serve(self, node: Node) -> None:
        arrived = node.state(Arrived)
        pushes = arrived.pushes
        try:
            worker, push = await node.recv(Push, departures=True)
        except PeerLost as lost:  # Fewer may be enough now.
            arrived.waiting = [rank for rank in arrived.waiting if rank != lost.peer]
        else:
            if push.taken_at == node.version:
                pushes[worker] = push
                arrived.waiting.append(worker)
            else:
                node.drop()
                node.send(worker, Pull(node.parameters, node.version))
        if not pushes or len(pushes) < self._needed(node, pushes):
            return
        node.apply(
            ring_mean([pushes[worker].gradient for worker in sorted(pushes)]),
            taken_at=[push.taken_at for push in pushes.values()],
        )
        for worker in sorted(arrived.waiting):
            node.send(worker, Pull(node.parameters, node.version))
        pushes.clear()
        arrived.waiting.clear()

    def _needed(self, node: Node, pushes: dict[int, Push]) -> int:
        """N, or as many as can still come."""
        able = pushes.keys() | {worker for worker in node.workers if node.is_live(worker)}
        return min(len(node.workers) - self.backups, len(able))
