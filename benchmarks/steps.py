"""What a step between two processes costs beside its gradient: ours, a plain loop's, DDP's.

    python benchmarks/steps.py [--rounds 5] [mlp lenet mean server]

Two processes of one thread each. All variants of a table take turns, round by round, and every
figure is a median. The floor is two unconnected processes that train at once; what a method adds
to it is compared with what DDP over gloo adds.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

import offbeat
from offbeat.method import Method
from offbeat.methods import DPSGD, AllReduceSGD, AsyncSGD, StochasticGradientPush
from offbeat.models import lenet5
from offbeat.node import Node
from offbeat.problems import Data, Problem, Split
from offbeat.runtime.processes import run_processes

MEGABYTES_100 = 25_000_000
"""Numbers of four bytes."""
Network = Literal["mlp", "lenet"]
STEPS: dict[Network, int] = {"mlp": 40, "lenet": 250}
SKIPPED = 10
"""Steps of each round that only warm up."""
OPTIMIZER = functools.partial(torch.optim.SGD, lr=1e-3, fused=True)


@dataclass(frozen=True, kw_only=True)
class RandomImages(Problem):
    """Noise of 28x28 pixels in ten classes, for an MLP of 5.8 million parameters or LeNet-5."""

    network: Network = "mlp"
    batch_size: int = 32

    def model(self) -> nn.Module:
        if self.network == "lenet":
            return lenet5()
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 2048),
            nn.ReLU(),
            nn.Linear(2048, 2048),
            nn.ReLU(),
            nn.Linear(2048, 10),
        )

    def data(self) -> Data:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(2048, 1, 28, 28, generator=generator)
        targets = torch.randint(10, (2048,), generator=generator)
        few = Split(inputs[:32], targets[:32])
        return Data(Split(inputs, targets), few, few)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def evaluate(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"loss": self.loss(outputs, targets).item()}


class _OneOfMany(nn.Module):
    """25 million parameters, of which one is used."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(MEGABYTES_100))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight[0]


@dataclass(frozen=True, kw_only=True)
class Wide(Problem):
    """A model of 100 MB whose gradient is cheap."""

    batch_size: int = 1

    def model(self) -> nn.Module:
        return _OneOfMany()

    def data(self) -> Data:
        split = Split(torch.ones(64), torch.zeros(64))
        return Data(split, split, split)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).mean()

    def evaluate(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"loss": self.loss(outputs, targets).item()}


@dataclass(frozen=True, kw_only=True)
class MeanOfMany(Method):
    """Means of 100 MB; every worker writes how long its own took, in ms, into `folder`."""

    folder: str
    synchronous = True

    async def step(self, node: Node) -> None:
        await node.gradient()
        vector = node.runtime.buffer(torch.empty(MEGABYTES_100)).fill_(node.rank)
        await node.barrier()
        began = time.perf_counter()
        await node.all_reduce(vector)
        elapsed = time.perf_counter() - began
        with (Path(self.folder) / str(node.rank)).open("a") as file:
            file.write(f"{1e3 * elapsed}\n")


# Ours


def ours(method: Method, problem: Problem, steps: int, workers: int = 2) -> Any:
    """The run of a method as processes, evaluated at its start and end only."""
    samples = steps * workers * problem.batch_size
    run = run_processes(
        offbeat.Experiment(
            method=method,
            problem=problem,
            cluster=offbeat.Cluster(workers=workers),
            optimizer=OPTIMIZER,
            budget=offbeat.Budget(samples=samples),
            evaluate_every=10 * samples,
        )
    )
    if run.error is not None:
        raise SystemExit(run.error)
    return run


def our_steps(method: Method, network: Network) -> list[float]:
    """Milliseconds from gradient to gradient."""
    table = ours(method, RandomImages(network=network), STEPS[network]).trace.gradients
    times: list[float] = []
    for rank in (0, 1):
        ends = table["end_ns"][table["node"] == rank]
        times += [ns / 1e6 for ns in (ends[1:] - ends[:-1])[SKIPPED:]]
    return times


def our_mean() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        ours(MeanOfMany(folder=folder), offbeat.problems.Digits(), 12)
        lines = [path.read_text().split() for path in Path(folder).iterdir()]
    return [float(line) for some in lines for line in some[2:]]


def our_push_and_pull() -> list[float]:
    """Milliseconds from the end of a gradient to the beginning of the next."""
    table = ours(AsyncSGD(), Wide(), 14, workers=1).trace.gradients
    return [ns / 1e6 for ns in (table["start_ns"][1:] - table["end_ns"][:-1])[3:]]


# The others: two processes that live through all rounds and work when told to


def plain_loop(model: nn.Module, network: Network) -> list[float]:
    train = RandomImages(network=network).data().train
    optimizer = OPTIMIZER(model.parameters())
    generator = torch.Generator().manual_seed(0)
    times = [time.perf_counter()]
    for _ in range(STEPS[network]):
        indices = torch.randint(len(train), (32,), generator=generator)
        loss = F.cross_entropy(model(train.inputs[indices]), train.targets[indices])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
    return [1e3 * (b - a) for a, b in zip(times[SKIPPED:], times[SKIPPED + 1 :], strict=False)]


def gloo_mean() -> list[float]:
    vector = torch.ones(MEGABYTES_100)
    times: list[float] = []
    for _ in range(10):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(vector)
        vector /= 2
        times.append(1e3 * (time.perf_counter() - began))
    return times[2:]


def copy_100_megabytes() -> list[float]:
    source, target = torch.ones(MEGABYTES_100), torch.zeros(MEGABYTES_100)
    times: list[float] = []
    for _ in range(10):
        began = time.perf_counter()
        target.copy_(source)
        times.append(1e3 * (time.perf_counter() - began))
    return times[2:]


def rival(rank: int, folder: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{os.path.join(folder, 'store')}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    models: dict[str, nn.Module] = {}
    actions: dict[str, Callable[[], list[float]]] = {"gloo": gloo_mean, "copy": copy_100_megabytes}
    for network in STEPS:
        own = RandomImages(network=network).model()
        models[network] = own
        parallel = nn.parallel.DistributedDataParallel(
            RandomImages(network=network).model(), gradient_as_bucket_view=True
        )
        actions[f"floor {network}"] = functools.partial(plain_loop, own, network)
        actions[f"DDP {network}"] = functools.partial(plain_loop, parallel, network)
    while (action := pipe.recv()) is not None:
        dist.barrier()
        pipe.send(actions[action]())
    dist.destroy_process_group()


class Rivals:
    def __init__(self, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        ends = [context.Pipe() for _ in range(2)]
        self._pipes = [ours for ours, _ in ends]
        self._processes = [
            context.Process(target=rival, args=(rank, folder, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(ends)
        ]
        for process in self._processes:
            process.start()

    def times(self, action: str) -> list[float]:
        self._tell(action)
        return [ms for pipe in self._pipes for ms in pipe.recv()]

    def close(self) -> None:
        self._tell(None)
        for process in self._processes:
            process.join()

    def _tell(self, action: str | None) -> None:
        for pipe in self._pipes:
            pipe.send(action)


Variants = dict[str, Callable[[], list[float]]]


def variants(part: str, rivals: Rivals) -> Variants:
    def theirs(name: str) -> Callable[[], list[float]]:
        return functools.partial(rivals.times, name)

    if part == "mean":
        return {"gloo": theirs("gloo"), "ours": our_mean}
    if part == "server":
        return {"copy": theirs("copy"), "ours": our_push_and_pull}
    network: Network = "mlp" if part == "mlp" else "lenet"
    methods = [AllReduceSGD(), DPSGD(), StochasticGradientPush()]
    return {
        "floor": theirs(f"floor {part}"),
        "DDP": theirs(f"DDP {part}"),
        **{type(m).__name__: functools.partial(our_steps, m, network) for m in methods},
    }


def show(part: str, medians: dict[str, float]) -> None:
    print(part)
    for name, ms in medians.items():
        line = f"  {name:24}{ms:8.2f} ms"
        if "floor" in medians and name not in ("floor", "DDP"):
            added, theirs = ms - medians["floor"], medians["DDP"] - medians["floor"]
            line += f"   adds {added:5.2f}, {added / theirs:5.2f} of what DDP does"
        elif name == "ours":
            reference = next(iter(medians))
            line += f"   {ms / medians[reference]:.2f} of {reference}"
        print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a step costs beside its gradient.")
    parts = [*STEPS, "mean", "server"]
    parser.add_argument("parts", nargs="*", default=parts, help=f"of {', '.join(parts)}")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rivals = Rivals(folder)
        for part in options.parts:
            times: dict[str, list[float]] = {}
            for _ in range(options.rounds):
                for name, action in variants(part, rivals).items():
                    times.setdefault(name, []).append(statistics.median(action()))
            show(part, {name: statistics.median(some) for name, some in times.items()})
        rivals.close()


if __name__ == "__main__":
    main()
