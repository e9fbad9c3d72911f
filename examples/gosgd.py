from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import offbeat


@offbeat.message
class Share:
    parameters: Tensor  # (d,)
    weight: float


@dataclass
class SumWeight:
    value: float = 1.0


@dataclass(frozen=True, kw_only=True)
class GoSGD(offbeat.Method):
    """GoSGD (Blot et al. 2016): x goes to anyone, now and then, with half of the sum-weight."""

    probability: float = 0.1
    survives_loss: ClassVar[bool] = True  # nobody waits for anybody
    messages: ClassVar[tuple[type, ...]] = (Share,)

    async def step(self, node: offbeat.Node) -> None:
        own, others = node.state(SumWeight), [r for r in node.workers if r != node.rank]
        while arrived := node.poll(Share):  # (sender, share)
            own.value += arrived[1].weight
            part = arrived[1].weight / own.value
            node.mix(scale=1 - part, add=part * arrived[1].parameters)
        gradient = await node.gradient()
        node.apply(gradient)
        if others and node.rng.random() < self.probability:
            own.value /= 2
            node.send(node.rng.choice(others), Share(node.parameters, own.value))
