"""Synchronous SGD with a parameter server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..collectives import ring_mean
from ..messages import message
from ..method import Holder, Method, ServerMethod
from ..node import Node
from ..suspensions import PeerLost
from .async_sgd import Pull, Push


@message
class Mean:  # server -> worker
    gradient: Tensor  # (d,) of the server's shard


@dataclass(frozen=True, kw_only=True)
class SyncSGD(ServerMethod):
    """Synchronous SGD: servers wait for every worker's gradient, x <- x - lr * mean_i g_i(x).

    Either the servers make that step and return the parameters, or they return the mean gradient
    and every worker makes the same step with an optimizer of its own, momentum and all.

    Servers wait for the workers that are live. Where they return gradients, nobody could tell a
    late worker the parameters and the optimizer's buffers, so there every worker is needed.

    Args:
        returns: what a worker gets back, "parameters" or "gradient".

    Roles: worker, server. Messages: Push, then Pull or Mean.
    Reference: Chen et al., "Revisiting Distributed Synchronous SGD", 2016.
    Differences: backup workers are `BackupSyncSGD`'s. The mean is added up in the order of
    `AllReduceSGD`, whose bits one server gives.
    """

    returns: Literal["parameters", "gradient"] = "parameters"

    messages: ClassVar[tuple[type, ...]] = (Push, Pull, Mean)
    synchronous: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"servers": 1}

    def __post_init__(self) -> None:
        # The class's own declaration is that of the default.
        object.__setattr__(self, "survives_loss", self.returns == "parameters")

    async def serve(self, node: Node) -> None:
        pushes = await self._gather(node)
        mean = ring_mean([pushes[worker].gradient for worker in sorted(pushes)])
        if self.returns == "parameters":
            node.apply(mean, taken_at=[push.taken_at for push in pushes.values()])
        for worker in sorted(pushes):
            if self.returns == "parameters":
                node.send(worker, Pull(node.parameters, node.version))
            else:
                node.send(worker, Mean(mean))

    async def _gather(self, node: Node) -> dict[int, Push]:
        """This round's gradient of every live worker, and of those that crash after sending it."""
        pushes: dict[int, Push] = {}
        # Anew after each: workers may come and go while the server waits for others.
        while (awaited := self._next_of(node, pushes)) is not None or not pushes:
            try:
                worker, push = await node.recv(Push, source=awaited)
                pushes[worker] = push
            except PeerLost:
                if not self.survives_loss:
                    raise
        for worker in sorted(node.departed - pushes.keys()):
            if found := node.poll(Push, source=worker):
                pushes[worker] = found[1]
        return pushes

    def _next_of(self, node: Node, pushes: dict[int, Push]) -> int | None:
        """Whom to wait for; None if all have come, or nobody is left."""
        needed = (w for w in node.workers if node.is_live(w) or not self.survives_loss)
        return next((worker for worker in needed if worker not in pushes), None)

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        for shard in node.shards:
            taken_at = gradient.versions[shard.index]
            node.send(shard.server, Push(gradient.vector[shard.span], taken_at))
        if self.returns == "parameters":
            for shard in node.shards:
                _, pull = await node.recv(Pull, source=shard.server)
                node.load(pull.parameters, pull.version, shard)
        else:
            means = [(await node.recv(Mean, source=shard.server))[1] for shard in node.shards]
            mean = torch.cat([mean.gradient for mean in means])
            node.apply(mean, taken_at=gradient.version)

    def model(self, nodes: Sequence[Holder]) -> Tensor:
        """What the servers hold; where they return gradients, the workers' mean."""
        if self.returns == "gradient":
            return Method.model(self, [node for node in nodes if not node.is_server])
        return super().model(nodes)

    def agreed(self, round: int) -> bool:
        return True
