"""Seconds per round of synchronous schemes in the simulator, and where one overtakes another.

    python benchmarks/crossings.py

Sixteen equal workers and a model of 6 million parameters. Every scheme passes the messages of its
method, on tensors without memory (PyTorch's meta device), and sleeps instead of computing, so that
this takes seconds. Prints the tables of docs/network.md.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

import offbeat
from offbeat.cluster import ALL_REDUCES, AllReduce, Cluster
from offbeat.collectives import Chunk, cost
from offbeat.messages import codec_of
from offbeat.methods.sgp import Share
from offbeat.runtime.simulated import Simulation
from offbeat.testing import small_experiment
from offbeat.topology import OnePeerExponential, Ring

WORKERS = 16
PARAMETERS = 6_000_000
COMPUTE = 0.1  # seconds of one gradient
LATENCY = 1e-4  # seconds
ROUNDS = 5


def size_of(message: type, *numbers: float) -> int:
    """Bytes of a message that carries all parameters."""
    return codec_of(message).size(message(torch.empty(PARAMETERS, device="meta"), *numbers))


def closed_form(scheme: str, bandwidth: float) -> float:
    """Seconds of one round, computing included. `bandwidth` in bytes per second."""
    if scheme == "SGP":
        return COMPUTE + size_of(Share, 1.0) / bandwidth + LATENCY
    if scheme == "D-PSGD":
        return max(COMPUTE, 2 * size_of(Share, 1.0) / bandwidth + LATENCY)
    if scheme == "server":
        # The server takes in the next round's gradients while it still answers: n transfers.
        return COMPUTE + WORKERS * size_of(Chunk, 0, 0) / bandwidth + 2 * LATENCY
    return COMPUTE + cost(scheme, WORKERS, size_of(Chunk, 0, 0), LATENCY, bandwidth)


async def all_reduce(node: offbeat.Node, x: Tensor) -> None:
    await node.sleep(COMPUTE)
    await node.all_reduce(x)


async def push(node: offbeat.Node, x: Tensor) -> None:
    """Stochastic gradient push to one peer: compute, send, receive."""
    await node.sleep(COMPUTE)
    peers = node.peers(OnePeerExponential())
    for peer in peers.out:
        node.send(peer, Share(x, 1.0))
    for peer in peers.into:
        await node.recv(Share, source=peer)


async def gossip(node: offbeat.Node, x: Tensor) -> None:
    """D-PSGD on a ring: both neighbours' models travel while the gradient is computed."""
    peers = node.peers(Ring())
    for peer in peers.out:
        node.send(peer, Share(x, 1.0))
    await node.sleep(COMPUTE)
    for peer in peers.into:
        await node.recv(Share, source=peer)


GOSSIP = {"SGP": push, "D-PSGD": gossip}
# "shared" is for the processes of one machine; between machines it costs what "direct" does.
SCHEMES = (*(name for name in ALL_REDUCES if name != "shared"), *GOSSIP)


@dataclass(frozen=True, kw_only=True)
class Timed(offbeat.Method):
    """Repeats a scheme's round, and keeps when each worker has ended each."""

    round: Callable[[offbeat.Node, Tensor], Awaitable[None]]
    ends: list[list[float]]

    async def step(self, node: offbeat.Node) -> None:
        raise AssertionError("the rounds are those of `work`")

    def roles(self, node: offbeat.Node) -> dict[str, Coroutine[Any, Any, None]]:
        return {"worker": self.work(node)}

    async def work(self, node: offbeat.Node) -> None:
        x = torch.empty(PARAMETERS, device="meta")
        for _ in range(ROUNDS):
            await self.round(node, x)
            node.round += 1
            self.ends[node.rank].append(node.now)


@functools.cache
def simulated(scheme: str, bandwidth: float) -> float:
    """Seconds of a round in the simulator: the mean of all but the first."""
    ends: list[list[float]] = [[] for _ in range(WORKERS)]
    method = Timed(round=GOSSIP.get(scheme, all_reduce), ends=ends)
    algorithm = cast(AllReduce, scheme) if scheme in ALL_REDUCES else "ring"
    cluster = Cluster(workers=WORKERS, latency=LATENCY, bandwidth=bandwidth, all_reduce=algorithm)
    budget = offbeat.Budget(seconds=1e6)
    experiment = small_experiment(method, workers=WORKERS, cluster=cluster, budget=budget)
    run = Simulation(experiment).run()
    if run.error is not None:
        raise RuntimeError(run.error)
    first, last = (max(worker[k] for worker in ends) for k in (0, -1))
    return (last - first) / (ROUNDS - 1)


def crossing(
    one: str,
    other: str,
    seconds: Callable[[str, float], float],
    low: float = 1e5,
    high: float = 1e13,
) -> float | None:
    """The bandwidth (bytes/s) at which two schemes' rounds last equally long, by bisection."""

    def lead(bandwidth: float) -> float:
        return seconds(one, bandwidth) - seconds(other, bandwidth)

    if lead(low) * lead(high) >= 0:
        return None
    rising = lead(low) < 0
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        if (lead(middle) < 0) == rising:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def main() -> None:
    bandwidth = 12.5e6
    print(f"{WORKERS} workers, {PARAMETERS:,} parameters, {COMPUTE} s a gradient, {LATENCY} s")
    print("\nAt 100 Mbit/s:\n")
    print("| scheme | seconds a round | closed form | rounds a minute |\n|---|---|---|---|")
    for scheme in sorted(SCHEMES, key=lambda scheme: -simulated(scheme, bandwidth)):
        seconds = simulated(scheme, bandwidth)
        form = closed_form(scheme, bandwidth)
        print(f"| {scheme} | {seconds:.3f} | {form:.3f} | {60 / seconds:.1f} |")
    print("\nWhere two change places:\n")
    print("| slower below | slower above | simulated, Gbit/s | closed forms, Gbit/s |")
    print("|---|---|---|---|")
    for pair in itertools.combinations(SCHEMES, 2):
        found, expected = crossing(*pair, simulated), crossing(*pair, closed_form)
        if found is None or expected is None:
            continue
        below = max(pair, key=lambda scheme: closed_form(scheme, expected / 2))
        above = pair[0] if below == pair[1] else pair[1]
        print(f"| {below} | {above} | {found * 8e-9:.4g} | {expected * 8e-9:.4g} |")


if __name__ == "__main__":
    main()
