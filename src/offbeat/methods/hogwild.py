"""Hogwild!: workers of one machine update one vector without locks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..method import Holder, Method, ModelLost
from ..node import Node


@dataclass(frozen=True, kw_only=True)
class Hogwild(Method):
    """Hogwild!: x <- x - lr * g(x), by all workers on one x, which no lock protects.

    A worker copies x while others write to it, computes its gradient at the copy, and makes its
    step in place, reading and writing one coordinate after the other. Where the steps of two
    workers meet in a coordinate, one of them may be lost.

    Roles: worker. Messages: none.
    Reference: Niu et al., "HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient
    Descent", NIPS 2011, algorithm 1.
    Differences: gradients of a minibatch, dense, where the paper's touch few coordinates; the
    coordinates are written without compare-and-swap; the inner optimizer's buffers, such as
    momentum, stay with their worker.
    """

    family: ClassVar[str] = "shared memory"
    survives_loss: ClassVar[bool] = True
    shares_parameters: ClassVar[bool] = True

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        node.apply(gradient)

    def model(self, nodes: Sequence[Holder]) -> Tensor:
        """The one vector (d,)."""
        if not nodes:
            raise ModelLost("no worker is left")
        return nodes[0].parameters
