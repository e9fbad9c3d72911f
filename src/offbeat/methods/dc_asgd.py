"""Delay-compensated asynchronous SGD."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..node import Node
from .async_sgd import AsyncSGD, Pull, Push


def delay_compensated(
    gradient: Tensor, now: Tensor, backup: Tensor, strength: float | Tensor
) -> Tensor:
    """g + lambda * g * g * (x_t - x_bak), elementwise: a first-order guess of g at x_t.

    All of shape (d,), lambda too if it is no number. Zheng et al. 2017, eq. (5) with the diagonal
    approximation of section 3.2.
    """
    return gradient + strength * gradient * gradient * (now - backup)


def mean_square(gradient: Tensor, before: Tensor, decay: float) -> Tensor:
    """m * MeanSquare + (1 - m) * g * g, elementwise, all of shape (d,)."""
    return decay * before + (1 - decay) * gradient * gradient


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

    async def serve(self, node: Node) -> None:
        backups = node.state(Backups)
        if backups.start is None:
            backups.start = node.parameters.clone()
        worker, push = await node.recv(Push)
        x = node.parameters
        # What a worker that joined late began with is not known here: no compensation.
        first = backups.start if push.taken_at == 0 else x
        backup = backups.sent.get(worker, first)
        gradient = push.gradient
        if self.strength != 0:
            strength = self.strength_for(node, worker, gradient)
            gradient = delay_compensated(gradient, x, backup, strength)
        node.apply(gradient, taken_at=push.taken_at)
        backups.sent[worker] = node.parameters.clone()
        node.send(worker, Pull(node.parameters, node.version))

    def strength_for(self, node: Node, worker: int, gradient: Tensor) -> float | Tensor:
        """lambda_t, a number or (d,), for that worker's gradient (d,)."""
        return self.strength


@dataclass
class MeanSquares:
    """MeanSquare (d,) of each worker's gradients."""

    of: dict[int, Tensor] = field(default_factory=dict[int, Tensor])


@dataclass(frozen=True, kw_only=True)
class AdaptiveDelayCompensatedSGD(DelayCompensatedSGD):
    """DC-ASGD whose strength adapts to each coordinate: lambda_t = lambda / sqrt(MeanSquare + eps).

    MeanSquare <- m MeanSquare + (1 - m) g*g;  x <- x - lr * (g + lambda_t g*g*(x - x_bak(m)))

    Args:
        strength: lambda; 0 is asynchronous SGD.
        decay: m, from 0 to below 1.
        epsilon: eps, positive.

    Roles: worker, server. Messages: Push, Pull.
    Reference: Zheng et al., "Asynchronous Stochastic Gradient Descent with Delay Compensation",
    ICML 2017, algorithm 2 (DC-ASGD-a).
    Differences: the paper's text has one MeanSquare; this is one for each worker, brought up to
    date before it is used, as in the authors' code.
    """

    strength: float = 2.0
    decay: float = 0.95
    epsilon: float = 1e-7

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay:g}; it must be from 0 to below 1")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon is {self.epsilon:g}; it must be positive")

    def strength_for(self, node: Node, worker: int, gradient: Tensor) -> Tensor:
        squares = node.state(MeanSquares).of
        before = squares.get(worker, torch.zeros_like(gradient))
        squares[worker] = mean_square(gradient, before, self.decay)
        return self.strength / (squares[worker] + self.epsilon).sqrt()
