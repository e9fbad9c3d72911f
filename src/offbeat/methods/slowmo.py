"""SlowMo: slow momentum over any inner method."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..method import Holder, Method
from ..node import Node
from .local_sgd import LocalSGD


def slow_momentum(
    start: Tensor, end: Tensor, momentum: Tensor, lr: float, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """u <- beta u + (x_0 - x_tau) / lr;  x <- x_0 - alpha lr u.  Returns (x, u), each (d,).

    At a rate of zero, where u would have no bounds, x is x_tau and u stays.
    """
    if lr == 0:
        return end, momentum
    momentum = beta * momentum + (start - end) / lr
    return start - alpha * lr * momentum, momentum


@dataclass
class Slow:
    start: Tensor | None = None
    """x_{t,0} (d,): where this outer iteration began."""
    momentum: Tensor | None = None
    """u (d,)."""


@dataclass(frozen=True, kw_only=True)
class SlowMo(Method):
    """SlowMo: tau steps of an inner method, exact averaging, and a step of slow momentum.

    x_tau = mean_i x_{i,tau};  u <- beta u + (x_0 - x_tau) / lr;  x_0 <- x_0 - alpha lr u

    alpha = 1 and beta = 0 is the inner method with exact averaging; over Local SGD, beta > 0 is
    BMUF and one worker with beta = 0 is Lookahead.

    Args:
        inner: the method that makes the steps between; not one with servers, nor one that makes
            outer steps itself.
        period: tau, steps of the inner method to one of slow momentum.
        alpha: slow learning rate.
        beta: slow momentum.
        buffers: whether the inner optimizer's buffers are zeroed or kept at each outer step (the
            paper zeroes SGD's and keeps Adam's).

    Roles: the inner method's. Messages: the inner method's and the collective's own.
    Reference: Wang et al., "SlowMo: Improving Communication-Efficient Distributed SGD with Slow
    Momentum", ICLR 2020, algorithm 1.
    Differences: lr is that of the last inner step, and where it is zero there is no slow step.
    """

    inner: Method = field(default_factory=lambda: LocalSGD(local_steps=8))
    period: int = 8
    alpha: float = 1.0
    beta: float = 0.5
    buffers: Literal["reset", "keep"] = "reset"

    family: ClassVar[str] = "local updates"
    synchronous: ClassVar[bool] = True
    outer_steps: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {
        "period": 1_000_000,
        "inner": LocalSGD(local_steps=1),
    }

    def validate(self, workers: int) -> None:
        if self.period < 1:
            raise ValueError(f"period is {self.period}; it must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha:g}; it must be positive")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta is {self.beta:g}; it must be from 0 to below 1")
        if self.inner.server_count or not self.inner.synchronous:
            raise ValueError(
                f"SlowMo cannot wrap {type(self.inner).__name__}: it averages at the same step "
                "of every worker, so the inner method must be synchronous and without servers"
            )
        if self.inner.outer_steps:
            raise ValueError(
                f"SlowMo cannot wrap {type(self.inner).__name__}: it makes outer steps itself, "
                "from a model that slow momentum does not move"
            )
        self.inner.validate(workers)

    def model(self, nodes: Sequence[Holder]) -> Tensor:
        return self.inner.model(nodes)

    def agreed(self, round: int) -> bool:
        return (round + 1) % self.period == 0 or self.inner.agreed(round)

    def beside(self, node: Node) -> dict[str, Coroutine[Any, Any, None]]:
        return self.inner.beside(node)

    async def step(self, node: Node) -> None:
        slow = node.state(Slow)
        if slow.start is None:
            slow.start = node.parameters.clone()
            slow.momentum = torch.zeros_like(slow.start)
        await self.inner.step(node)
        if (node.round + 1) % self.period:
            return
        await self.inner.settle(node)
        mean = node.parameters
        if not self.inner.agreed(node.round):
            mean = await node.all_reduce(mean)
        assert slow.momentum is not None
        lr = node.optimizer.lr
        x, slow.momentum = slow_momentum(slow.start, mean, slow.momentum, lr, self.alpha, self.beta)
        slow.start = x
        self.inner.restart(node, x)
        if self.buffers == "reset":
            node.optimizer.reset()
