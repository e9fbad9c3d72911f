"""Elastic averaging SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..ledger import Ledger
from ..method import ServerMethod
from ..node import Node
from .ad_psgd import Difference, Offer


def elastic_difference(x: Tensor, center: Tensor, moving_rate: float) -> Tensor:
    """alpha (x - c), all (d,): what the exchange takes from x and gives to c."""
    return moving_rate * (x - center)


def _sum(values: Tensor) -> Tensor:
    return values.sum().reshape(1)


def _carried(message: Any) -> Tensor | None:
    return _sum(message.delta) if isinstance(message, Difference) else None


@dataclass(frozen=True, kw_only=True)
class ElasticAveragingSGD(ServerMethod):
    """EASGD: each worker's x_i and the server's center c pull each other, every tau steps.

    x = x_i;  x_i <- x_i - alpha (x - c);  c <- c + alpha (x - c);  x_i <- x_i - lr * g_i(x)

    Between exchanges workers make local steps and wait for nobody. What goes to the center is what
    leaves the worker, so an exchange keeps x_i + c. The model is the center. With a Nesterov inner
    optimizer this is EAMSGD.

    Args:
        local_steps: tau, steps of a worker from one exchange to the next.
        elasticity: beta = p alpha for p workers, so that an exchange moves by alpha = beta / p.

    Roles: worker, server. Messages: Offer, Difference.
    Reference: Zhang, Choromanska, LeCun, "Deep learning with Elastic Averaging SGD", NIPS 2015,
    algorithm 1.
    Differences: EAMSGD's momentum is the inner optimizer's; PyTorch's Nesterov keeps the parameters
    at the point that the gradient is taken at, and the exchange is made there too.
    """

    local_steps: int = 8
    elasticity: float = 0.9

    family: ClassVar[str] = "local updates"
    messages: ClassVar[tuple[type, ...]] = (Offer, Difference)
    serial: ClassVar[dict[str, Any] | None] = None
    # Of all coordinates together: a server holds only some of them.
    ledger: ClassVar[Ledger | None] = Ledger(
        held=lambda node: _sum(node.parameters), carried=_carried
    )

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.local_steps < 1:
            raise ValueError(f"local_steps is {self.local_steps}; it must be at least 1")
        if not 0 < self.elasticity <= workers:
            raise ValueError(
                f"elasticity is {self.elasticity:g}; it must be above 0 and at most the number of "
                f"workers, {workers}"
            )

    async def serve(self, node: Node) -> None:
        worker, offer = await node.recv(Offer)
        moving_rate = self.elasticity / len(node.workers)
        delta = elastic_difference(offer.parameters, node.parameters, moving_rate)
        node.mix(add=delta)
        node.send(worker, Difference(-delta))

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        if node.round % self.local_steps == 0:
            for shard in node.shards:
                node.send(shard.server, Offer(node.parameters[shard.span]))
            for shard in node.shards:
                _, answer = await node.recv(Difference, source=shard.server)
                node.mix(add=answer.delta, part=shard)
        node.apply(gradient)
