"""Asynchronous SGD with gradients accumulated on the servers, the workers, or both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..node import Node
from .gathering import GatheringSGD
from .staleness import ConstantWeight, StalenessRule


@dataclass
class Accrued:
    """Of a worker: its gradients since its last push."""

    total: Tensor | None = None
    """Their sum (d,)."""
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class AccumulatedAsyncSGD(GatheringSGD):
    """Asynchronous SGD whose server makes one step of N pushes, each of L gradients of one worker.

    A worker takes L gradients at the parameters it pulled last, and pushes them together. Nobody
    waits for others: each push is answered at once with the present parameters. Staleness is
    counted in the server's steps, and falls as N grows. N = L = 1 is asynchronous SGD.

    Args:
        global_accumulation: N, pushes to a step.
        local_accumulation: L, gradients to a push.
        reduction: the step is along the "mean" of its N L gradients or along their "sum".
        rule: what the learning rate is multiplied by, by staleness.

    Roles: worker, server. Messages: Push, Pull.
    Reference: Aji and Heafield, "Making Asynchronous Stochastic Gradient Descent Work for
    Transformers", 2019.
    Differences: the paper adds gradients up, as "sum" does; the default is the mean, so that one
    learning rate does for every N and L. The rule is an addition.
    """

    global_accumulation: int = 4
    local_accumulation: int = 1
    reduction: Literal["mean", "sum"] = "mean"
    rule: StalenessRule = field(default_factory=ConstantWeight)

    serial: ClassVar[dict[str, Any] | None] = {
        "global_accumulation": 1,
        "local_accumulation": 1,
        "servers": 1,
    }

    def validate(self, workers: int) -> None:
        super().validate(workers)
        for name in ("global_accumulation", "local_accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def gathers(self, workers: int) -> int:
        return self.global_accumulation

    def rule_of(self) -> StalenessRule:
        return self.rule

    @property
    def gradients_of_push(self) -> int:
        return self.local_accumulation

    def reduced(self, mean: Tensor, count: int) -> Tensor:
        return mean if self.reduction == "mean" or count == 1 else mean * count

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        accrued = node.state(Accrued)
        vector = gradient.vector
        accrued.total = vector.clone() if accrued.total is None else accrued.total + vector
        accrued.count += 1
        if accrued.count < self.local_accumulation:
            return
        mean = accrued.total / accrued.count
        accrued.total, accrued.count = None, 0
        await self.exchange(node, mean, gradient.versions)
