"""Delay-compensated asynchronous SGD."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..node import Node
from .async_sgd import AsyncSGD, Pull, Push


def delay_compensated(gradient: Tensor, now: Tensor, backup: Tensor, strength: float) -> Tensor:
    """g + lambda * g * g * (x_t - x_bak), elementwise: a first-order guess of g at x_t.

    All of shape (d,). Zheng et al. 2017, eq. (5) with the diagonal approximation of section 3.2.
    """
    if strength == 0.0:
        return gradient
    return gradient + strength * gradient * gradient * (now - backup)


@dataclass
class Backups:
    """What each worker was last sent, and where all began."""

    start: Tensor | None = None
    sent: dict[int, Tensor] = field(default_factory=dict[int, Tensor])


@dataclass(frozen=True, kw_only=True)
class DelayCompensatedSGD(AsyncSGD):
    """DC-ASGD with a constant strength: x <- x - lr * (g + lambda g*g*(x - x_bak(m))).

    x_bak(m) is what worker m pulled last, the point its gradient was taken at.

    Args:
        strength: lambda; 0 is asynchronous SGD.

    Roles: worker, server. Messages: Push, Pull.
    Reference: Zheng et al., "Asynchronous Stochastic Gradient Descent with Delay Compensation",
    ICML 2017, algorithm 2 (DC-ASGD-c).
    """

    strength: float = 0.04

    reference: ClassVar[str] = (
        "Zheng et al., Asynchronous Stochastic Gradient Descent with Delay Compensation, 2017"
    )

    async def serve(self, node: Node) -> None:
        backups = node.state(Backups)
        if backups.start is None:
            backups.start = node.parameters.clone()
        worker, push = await node.recv(Push)
        x = node.parameters
        # What a worker that joined late began with is not known here: no compensation.
        first = backups.start if push.taken_at == 0 else x
        backup = backups.sent.get(worker, first)
        compensated = delay_compensated(push.gradient, x, backup, self.strength)
        node.apply(compensated, taken_at=push.taken_at)
        backups.sent[worker] = node.parameters.clone()
        node.send(worker, Pull(node.parameters, node.version))
