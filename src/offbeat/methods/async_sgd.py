"""Asynchronous SGD with a parameter server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..messages import message
from ..method import ServerMethod
from ..node import Node


@message
class Push:  # worker -> server
    gradient: Tensor  # (d,) of the server's shard
    taken_at: int  # version of the shard in the worker's snapshot


@message
class Pull:  # server -> worker
    parameters: Tensor  # (d,) of the server's shard
    version: int


@dataclass(frozen=True, kw_only=True)
class AsyncSGD(ServerMethod):
    """Asynchronous SGD: the server applies each gradient as it comes, x <- x - lr * g(x_{k-tau}).

    Each worker gets the parameters back that its gradient was applied to, and goes on from them.
    Several servers share the parameters, each with a clock of its own.

    Roles: worker, server. Messages: Push, Pull.
    Reference: Dean et al., "Large Scale Distributed Deep Networks", 2012, section 4.1 (Downpour
    with n_fetch = n_push = 1).
    Differences: a worker makes no step of its own between push and fetch.
    """

    messages: ClassVar[tuple[type, ...]] = (Push, Pull)
    serial: ClassVar[dict[str, Any] | None] = {"servers": 1}

    async def serve(self, node: Node) -> None:
        worker, push = await node.recv(Push)
        node.apply(push.gradient, taken_at=push.taken_at)
        node.send(worker, Pull(node.parameters, node.version))

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        await self.exchange(node, gradient.vector, gradient.versions)

    async def exchange(self, node: Node, gradient: Tensor, versions: Sequence[int]) -> None:
        """Push a gradient (d,), taken at those versions of the shards, and pull parameters."""
        for shard in node.shards:
            node.send(shard.server, Push(gradient[shard.span], versions[shard.index]))
        for shard in node.shards:
            _, pull = await node.recv(Pull, source=shard.server)
            node.load(pull.parameters, pull.version, shard)
