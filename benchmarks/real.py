"""Scheduler cost of a real run: what a step costs beside its gradient and its optimizer.

    python benchmarks/real.py

One host with its transport, journal and node lock, a worker that asks for gradients, and gradients
that cost nothing. Every figure is the median of several repetitions in one process.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from offbeat.method import Method
from offbeat.methods import SGD
from offbeat.node import Node
from offbeat.parameters import Layout
from offbeat.runtime.host import Host
from offbeat.schedule import Constant

STEPS = 5_000
REPETITIONS = 9
DIMENSION = 2_410


@dataclass(frozen=True, kw_only=True)
class Idle(Method):
    """Asks for gradients and drops them: the scheduler alone."""

    async def step(self, node: Node) -> None:
        await node.gradient()


def microseconds(action: Callable[[], None], steps: int) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) / steps * 1e6


def steps_of(
    method: Method, folder: Path, journals: Path | None
) -> tuple[Host, Callable[[], None]]:
    host = Host(
        method,
        [0],
        0,
        listen=f"unix:{folder / type(method).__name__}-{journals is None}",
        secret=b"benchmark",
        may_compute=lambda node, request: True,
        on_failure=lambda error: None,
        journals=journals,
    )
    node = Node(
        rank=0,
        workers=range(1),
        servers=range(1, 1),
        parameters=torch.zeros(DIMENSION),
        layout=Layout(("x",), ((DIMENSION,),)),
        runtime=host,
        optimizer_factory=lambda named: torch.optim.SGD([p for _, p in named], lr=0.1),
        schedule=Constant(),
        batch_size=1,
        seed=0,
    )
    host.add(node)
    host.begin(time.monotonic_ns())
    gradient = torch.ones(DIMENSION)

    def run() -> None:
        for _ in range(STEPS):
            asked = host.next_request()
            assert asked is not None
            host.fulfil(*asked, gradient, 0.0, host.elapsed)

    return host, run


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        idle_host, idle = steps_of(Idle(), folder, folder)
        bare_host, bare = steps_of(Idle(), folder, None)
        sgd_host, sgd = steps_of(SGD(), folder, None)
        parameter = torch.nn.Parameter(torch.zeros(DIMENSION))
        parameter.grad = torch.ones(DIMENSION)
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def plain() -> None:
            for _ in range(STEPS):
                optimizer.step()

        rows = {
            "step without gradient or optimizer, journal on": idle,
            "the same, journal off": bare,
            "step of SGD without gradient": sgd,
            "torch.optim.SGD.step alone": plain,
        }
        figures: dict[str, list[float]] = {name: [] for name in rows}
        for action in rows.values():
            action()
        for _ in range(REPETITIONS):
            for name, action in rows.items():
                figures[name].append(microseconds(action, STEPS))
        for name, values in figures.items():
            print(f"{name:50} {statistics.median(values):7.1f} us")
        for host in (idle_host, bare_host, sgd_host):
            host.finish()
            host.close()


if __name__ == "__main__":
    main()
