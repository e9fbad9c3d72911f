"""Serial SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..method import Method
from ..node import Node


@dataclass(frozen=True, kw_only=True)
class SGD(Method):
    """Minibatch SGD without communication: x <- x - lr * g(x).

    One worker is the serial baseline. Several train alone; the model is then their mean.

    Roles: worker. Messages: none.
    Reference: Robbins and Monro, "A Stochastic Approximation Method", 1951.
    """

    family: ClassVar[str] = "serial"
    synchronous: ClassVar[bool] = True
    survives_loss: ClassVar[bool] = True

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        node.apply(gradient)
