"""The mean of 100 MB over two processes: gloo's all_reduce against a method's.

A method gives `node.all_reduce` either a gradient as it comes, in the pieces that autograd made,
or a vector, for which the pieces have been copied into one.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import ClassVar

from common import ours
from common.figures import Part
from common.groups import Group
from common.workloads import RandomData
from rivals import floor, gloo

from offbeat.method import Method
from offbeat.node import Node


@dataclass(frozen=True, kw_only=True)
class Mean(Method):
    """Averages gradients, and does nothing with the mean.

    Args:
        joined: they are made vectors first.
    """

    joined: bool = False

    synchronous: ClassVar[bool] = True

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        await node.all_reduce(gradient.vector if self.joined else gradient)


def measure(*, rounds: int, quick: bool) -> list[Part]:
    network, steps = ("small_matrix", 5) if quick else ("matrix", 12)
    problem = RandomData(network=network, batch_size=1, samples=64)
    count = sum(parameter.numel() for parameter in problem.model().parameters())
    part = Part(name="mean", title=f"The mean of {count * 4 / 1e6:.0f} MB over 2 processes, ms")
    with (
        Group(gloo.all_reduce, count) as rival,
        Group(floor.copy, count, size=1) as copies,
    ):
        for _ in range(rounds):
            part.add("a copy, one process", 1e3 * statistics.median(copies.burst(steps)))
            part.add("gloo all_reduce", 1e3 * statistics.median(rival.burst(steps)))
            for name, joined in (("node.all_reduce", False), ("node.all_reduce, vector", True)):
                run = ours.run(Mean(joined=joined), problem, steps=steps)
                part.add(name, 1e3 * statistics.median(ours.together_seconds(run)))
    part.notes.append(
        "node.all_reduce: from the end of the slower worker's gradient until both begin the next"
    )
    part.compare(
        "node.all_reduce / gloo",
        part.median("node.all_reduce") / part.median("gloo all_reduce"),
        0.25,
    )
    return [part]
