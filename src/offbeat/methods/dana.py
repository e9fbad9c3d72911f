"""DANA: asynchronous Nesterov momentum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..node import Node
from .async_sgd import AsyncSGD, Pull, Push


@dataclass
class Momenta:
    """Of a server: each worker's momentum v_i (d,), and their sum."""

    of: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    total: Tensor | None = None

    def renew(self, worker: int, gradient: Tensor, decay: float) -> Tensor:
        """v_i <- decay v_i + g_i; returns it."""
        if self.total is None:
            self.total = torch.zeros_like(gradient)
        before = self.of.get(worker)
        renewed = gradient.clone() if before is None else decay * before + gradient
        self.total += renewed if before is None else renewed - before
        self.of[worker] = renewed
        return renewed

    def forget(self, worker: int) -> None:
        momentum = self.of.pop(worker, None)
        if momentum is not None and self.total is not None:
            self.total -= momentum


@dataclass(frozen=True, kw_only=True)
class DANA(AsyncSGD):
    """DANA: the server keeps a momentum for each worker, and sends what it expects x to be soon.

    v_i <- beta v_i + g_i;  x <- x - lr v_i;  worker i goes on from x - lr beta sum_j v_j

    By when i's next gradient comes, the others' momenta have moved x by about that much. One
    worker takes the points of SGD with Nesterov momentum. beta = 0 is asynchronous SGD.

    Args:
        momentum: beta, from 0 to below 1.

    Roles: worker, server. Messages: Push, Pull.
    Reference: Hakimi et al., "Taming Momentum in a Distributed Asynchronous Environment", 2019.
    Differences: the momentum is the method's own, so the inner optimizer is meant to be SGD
    without any; those who have departed are not looked ahead for.
    """

    momentum: float = 0.5

    serial: ClassVar[dict[str, Any] | None] = {"momentum": 0.0}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum:g}; it must be from 0 to below 1")

    async def serve(self, node: Node) -> None:
        worker, push = await node.recv(Push)
        momenta = node.state(Momenta)
        for gone in sorted(node.departed):
            momenta.forget(gone)
        step = momenta.renew(worker, push.gradient, self.momentum)
        node.apply(step, taken_at=push.taken_at)
        assert momenta.total is not None
        ahead = node.parameters - node.optimizer.lr * self.momentum * momenta.total
        node.send(worker, Pull(ahead, node.version))
