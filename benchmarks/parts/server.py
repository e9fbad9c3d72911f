"""A parameter server: push and pull of 100 MB, and updates per second against Ray's example."""

from __future__ import annotations

import importlib.util
import statistics
from contextlib import ExitStack
from dataclasses import dataclass

from common import ours
from common.figures import Part
from common.groups import Group
from common.workloads import RandomData
from rivals import floor

from offbeat.methods import AsyncSGD
from offbeat.methods.async_sgd import Pull, Push
from offbeat.node import Node

WORKERS = 2
SMALLEST = "MLP 64-32-10, batch 32"
SMALL = {
    "the example's network, batch 128": RandomData(network="convnet", batch_size=128),
    SMALLEST: RandomData(network="small_mlp"),
}


@dataclass(frozen=True, kw_only=True)
class PushAndPull(AsyncSGD):
    """AsyncSGD whose server takes gradients in and sends its parameters, but does not step."""

    async def serve(self, node: Node) -> None:
        worker, _ = await node.recv(Push)
        node.send(worker, Pull(node.parameters, node.version))


def measure(*, rounds: int, quick: bool) -> list[Part]:
    return [_exchanges(rounds, quick), _updates(rounds, quick)]


def _exchanges(rounds: int, quick: bool) -> Part:
    network, steps = ("small_matrix", 5) if quick else ("matrix", 12)
    problem = RandomData(network=network, batch_size=1, samples=64)
    count = sum(parameter.numel() for parameter in problem.model().parameters())
    part = Part(
        name="push and pull",
        title=f"One worker and one server, {count * 4 / 1e6:.0f} MB of parameters, ms",
    )
    with Group(floor.copy, count, size=1) as copies:
        for _ in range(rounds):
            part.add("a copy", 1e3 * statistics.median(copies.burst(steps)))
            for name, method in (("push and pull", PushAndPull()), ("AsyncSGD", AsyncSGD())):
                run = ours.run(method, problem, workers=1, steps=steps)
                part.add(name, 1e3 * statistics.median(ours.gap_seconds(run)))
    part.notes.append(
        "from the end of a gradient to the beginning of the next; AsyncSGD has its server step too"
    )
    part.compare("push and pull / copy", part.median("push and pull") / part.median("a copy"), 4)
    return part


def _updates(rounds: int, quick: bool) -> Part:
    updates = 30 if quick else 600
    part = Part(name="updates", title=f"{WORKERS} workers and one server, updates per second")
    with ExitStack() as stack:
        rivals: dict[str, Group] = {}
        if importlib.util.find_spec("ray"):
            # Imported here: it takes a second.
            from rivals import ray_server

            rivals = {
                name: stack.enter_context(Group(ray_server.updates, problem, WORKERS, size=1))
                for name, problem in SMALL.items()
            }
        else:
            part.notes.append("ray is not installed: left out")
        for _ in range(rounds):
            for name, problem in SMALL.items():
                if name in rivals:
                    seconds = rivals[name].burst(updates, warm=updates // 10)
                    part.add(f"Ray, {name}", updates / sum(seconds))
                run = ours.run(AsyncSGD(), problem, workers=WORKERS, steps=updates)
                part.add(f"AsyncSGD, {name}", ours.updates_per_second(run))
    for name in rivals:
        ratio = part.median(f"AsyncSGD, {name}") / part.median(f"Ray, {name}")
        # In the other, gradients take most of the time, of both.
        part.compare(f"AsyncSGD / Ray, {name}", ratio, 5 if name == SMALLEST else None, above=True)
    return part
