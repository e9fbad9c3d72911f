"""Asynchronous Local SGD: delayed Nesterov momentum and dynamic local updates."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..messages import message
from ..method import ServerMethod
from ..node import Node
from .diloco import check_outer


@message
class PseudoGradient:  # worker -> server
    change: Tensor  # (d,) of the server's shard: where the local steps began minus where they ended
    seconds: float  # of one of these steps


@message
class Model:  # server -> worker
    parameters: Tensor  # (d,) of the server's shard
    local_steps: int  # that the worker is to make from there


def delayed_nesterov(
    x: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    collected: Tensor,
    *,
    due: bool,
    lr: float,
    beta: float,
    period: int,
    activation: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Delta += g;  if due:  m <- b m + Delta/N;  x <- x - lr ((1 - cN + c) b m + g/N);  Delta <- 0
    else:  x <- x - lr (c b m + g/N).  Returns (x, m, Delta), each (d,), as all tensors.

    N is `period`, c `activation`. With N = 1 it is Nesterov's momentum, as in `torch.optim.SGD`.
    Liu et al. 2024, algorithm 3.
    """
    collected = collected + gradient
    weight = activation
    if due:
        momentum = beta * momentum + collected / period
        weight = 1 - activation * period + activation
        collected = torch.zeros_like(collected)
    return x - lr * (weight * beta * momentum + gradient / period), momentum, collected


def dynamic_steps(seconds: float, fastest: float, local_steps: int) -> int:
    """floor(v_w / max v * H), at least 1, for a worker whose step takes `seconds` = 1 / v_w."""
    # The quotient of equal speeds may come out below a whole number by rounding.
    return (
        local_steps if seconds <= fastest else max(1, floor(fastest / seconds * local_steps + 1e-9))
    )


@dataclass
class Outer:
    """Of a server: its outer optimizer, and how fast the workers were."""

    momentum: Tensor | None = None
    """m (d,)."""
    collected: Tensor | None = None
    """Delta (d,)."""
    seconds: dict[int, float] = field(default_factory=dict[int, float])
    """Of a local step, by worker."""


@dataclass
class LocalRun:
    """Of a worker: its local steps since it was last sent a model."""

    start: Tensor | None = None
    """(d,): where they began."""
    steps: int = 0
    """How many they are to be; 0 before the first."""
    done: int = 0
    began: float = 0.0
    """Seconds."""


@dataclass(frozen=True, kw_only=True)
class AsyncLocalSGD(ServerMethod):
    """Asynchronous Local SGD: the server steps along each worker's change as it comes.

    H_w local steps;  g = theta_start - x_w;  theta <- OuterOpt(theta, g);  x_w <- theta

    Momentum that decays at every arrival grows too large, as k changes of the same place are one
    change. Delayed Nesterov (DN) takes in the mean of N of them at once. Dynamic local updates
    (DyLU) let slow workers make fewer steps, H_w = floor(v_w / max v * H), so that nobody's change
    is late.

    OuterOpt is DN; Nesterov's momentum is `momentum_period=1` and SGD that with
    `outer_momentum=0`, along whole changes: then divide `outer_lr` by the workers.

    Args:
        local_steps: H, of the fastest worker; before speeds are known, of all.
        outer_lr: of the outer optimizer, for a mean of N changes.
        outer_momentum: beta.
        momentum_period: N, arrivals from one change of the momentum to the next; None is the
            number of workers.
        momentum_activation: c, from 0 to 1/N, the momentum's share in a step between.
        dynamic: whether slow workers make fewer local steps.

    Roles: worker, server. Messages: PseudoGradient, Model.
    Reference: Liu et al., "Asynchronous Local-SGD Training for Language Modeling", 2024,
    algorithms 2 and 3.
    Differences: a worker's speed is that of its last local steps; no grace period in which arrivals
    are gathered; each worker keeps its own share of the data, its inner optimizer's buffers, and
    the experiment's learning-rate schedule.
    """

    local_steps: int = 8
    outer_lr: float = 0.7
    outer_momentum: float = 0.5
    momentum_period: int | None = None
    momentum_activation: float = 0.0
    dynamic: bool = True

    family: ClassVar[str] = "local updates"
    messages: ClassVar[tuple[type, ...]] = (PseudoGradient, Model)
    serial: ClassVar[dict[str, Any] | None] = None

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.local_steps < 1:
            raise ValueError(f"local_steps is {self.local_steps}; it must be at least 1")
        check_outer(self.outer_lr, self.outer_momentum)
        period = workers if self.momentum_period is None else self.momentum_period
        if period < 1:
            raise ValueError(f"momentum_period is {period}; it must be at least 1")
        if not 0 <= self.momentum_activation <= 1 / period:
            raise ValueError(
                f"momentum_activation is {self.momentum_activation:g}; it must be from 0 to "
                f"1 / momentum_period = {1 / period:g}"
            )

    async def serve(self, node: Node) -> None:
        outer = node.state(Outer)
        if outer.momentum is None or outer.collected is None:
            outer.momentum = torch.zeros_like(node.parameters)
            outer.collected = torch.zeros_like(node.parameters)
        worker, local = await node.recv(PseudoGradient)
        period = self.momentum_period or len(node.workers)
        theta, outer.momentum, outer.collected = delayed_nesterov(
            node.parameters,
            local.change,
            outer.momentum,
            outer.collected,
            due=(node.version + 1) % period == 0,
            lr=self.outer_lr,
            beta=self.outer_momentum,
            period=period,
            activation=self.momentum_activation,
        )
        node.load(theta, node.version + 1)
        outer.seconds[worker] = local.seconds
        node.send(worker, Model(node.parameters, self._steps(node, worker, outer.seconds)))

    def _steps(self, node: Node, worker: int, seconds: dict[int, float]) -> int:
        if not self.dynamic:
            return self.local_steps
        there = [of for rank, of in seconds.items() if rank not in node.departed]
        return dynamic_steps(seconds[worker], min(there, default=0.0), self.local_steps)

    async def step(self, node: Node) -> None:
        run = node.state(LocalRun)
        if run.start is None:
            run.start, run.done, run.began = node.parameters.clone(), 0, node.now
            run.steps = run.steps or self.local_steps
        gradient = await node.gradient()
        node.apply(gradient)
        run.done += 1
        if run.done == run.steps:
            await self._exchange(node, run, run.start - node.parameters)

    async def _exchange(self, node: Node, run: LocalRun, change: Tensor) -> None:
        seconds = (node.now - run.began) / run.done
        for shard in node.shards:
            node.send(shard.server, PseudoGradient(change[shard.span], seconds))
        for shard in node.shards:
            _, model = await node.recv(Model, source=shard.server)
            node.load(model.parameters, part=shard)
            if shard.index == 0:
                run.steps = model.local_steps
        run.start = None
