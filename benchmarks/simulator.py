"""How fast the simulator is, beside a plain PyTorch loop on the same machine.

    python benchmarks/simulator.py            # about four minutes
    python benchmarks/simulator.py --repeats 3 --only gradients
    python benchmarks/simulator.py --quick

Rivals take turns within each repetition and ratios are those of their medians, so that a machine
that is now slow and now fast treats them alike.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from common import options
from torch import nn

from offbeat.cluster import Cluster, Constant
from offbeat.experiment import Budget, Experiment
from offbeat.messages import message
from offbeat.method import Method
from offbeat.methods import ADPSGD, AllReduceSGD, AsyncSGD, StochasticGradientPush
from offbeat.models import lenet5
from offbeat.node import Node
from offbeat.problems import Digits, Split, Supervised
from offbeat.runtime.simulated import Simulation

SGD = functools.partial(torch.optim.SGD, lr=0.01)


def digits(batch_size: int, workers: int) -> Supervised:
    """The digits' images, over and over until every worker holds four minibatches."""
    data = Digits().data()
    copies = -(-4 * batch_size * workers // len(data.train))
    train = Split(data.train.inputs.repeat(copies, 1), data.train.targets.repeat(copies))
    return supervised(Digits().model, train, data.test, batch_size)


def mnist_shaped(batch_size: int) -> Supervised:
    """Random images of MNIST's shape for LeNet-5."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(10_240, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (10_240,), generator=generator)
    train, test = Split(images[:-500], labels[:-500]), Split(images[-500:], labels[-500:])
    return supervised(lenet5, train, test, batch_size)


def supervised(
    model: Callable[[], nn.Module], train: Split, test: Split, batch_size: int
) -> Supervised:
    return Supervised(
        model_factory=model,
        train=train,
        test=test,
        loss_function=F.cross_entropy,
        batch_size=batch_size,
        validation=0.01,
    )


def simulate(method: Method, problem: Supervised, workers: int, gradients: int) -> float:
    """Seconds that a whole simulation takes, evaluated at its start and end."""
    began = time.perf_counter()
    experiment = Experiment(
        method=method,
        problem=problem,
        cluster=Cluster(workers=workers),
        optimizer=SGD,
        budget=Budget(samples=gradients * problem.batch_size),
        evaluate_every=gradients * problem.batch_size,
    )
    run = Simulation(experiment).run()
    seconds = time.perf_counter() - began
    assert run.error is None, run.error
    assert len(run.trace.rows["gradients"]) == gradients
    return seconds


def train(problem: Supervised, steps: int, threads: int) -> float:
    """Seconds of a plain loop; no evaluation, no record of losses."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    model, data = problem.model(), problem.data().train
    optimizer = SGD(model.parameters())
    batches = torch.randperm(len(data)).split(problem.batch_size)[:-1]
    began = time.perf_counter()
    for step in range(steps):
        batch = batches[step % len(batches)]
        optimizer.zero_grad()
        loss = problem.loss(model(data.inputs[batch]), data.targets[batch])
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - began
    torch.set_num_threads(before)
    return seconds


def against_plain_loop(name: str, problem: Supervised, gradients: int, repeats: int) -> None:
    """Gradients per second: 64 asynchronous workers, and one model trained for as many steps."""
    # Beside other programs two threads can be 20 times slower than one: a tenth shows enough.
    few = gradients // 10
    rivals: dict[str, Callable[[], float]] = {
        "simulator": lambda: simulate(AsyncSGD(), problem, 64, gradients) / gradients,
        "plain, 1 thread": lambda: train(problem, gradients, 1) / gradients,
        "plain, 2 threads": lambda: train(problem, few, 2) / few,
    }
    first = simulate(AsyncSGD(), problem, 64, gradients)
    costs: dict[str, list[float]] = {rival: [] for rival in rivals}
    for _ in range(repeats):
        for rival, cost in rivals.items():
            costs[rival].append(1e6 * cost())
    medians = {rival: statistics.median(taken) for rival, taken in costs.items()}
    print(f"\n{name}, batch {problem.batch_size}, {gradients} gradients, {repeats} repetitions")
    for rival, us in medians.items():
        low, high = min(costs[rival]), max(costs[rival])
        print(
            f"  {rival:17} {1e6 / us:7.0f} gradients/s, {us:6.0f} us each ({low:.0f} to {high:.0f})"
        )
    plain = min(us for rival, us in medians.items() if rival != "simulator")
    print(f"  simulator / faster plain loop: {plain / medians['simulator']:.2f}")
    extra = first - gradients * medians["simulator"] / 1e6
    print(f"  the first simulation took {extra:.1f} s more", flush=True)


def by_workers(counts: Sequence[int], gradients: int, repeats: int) -> None:
    """Cost of a gradient by method and number of workers; each has eight to compute at least."""
    methods = AsyncSGD(), ADPSGD(), StochasticGradientPush(), AllReduceSGD()
    print(f"\nus a gradient by workers; digits MLP, batch 16, {repeats} repetitions")
    print("  workers " + "".join(f"{type(method).__name__:>24}" for method in methods))
    for workers in counts:
        problem = digits(16, workers)
        computed = workers * max(8, gradients // workers)
        for method in methods:
            simulate(method, problem, workers, workers)
        times: list[list[float]] = [[] for _ in methods]
        for _ in range(repeats):
            for method, taken in zip(methods, times, strict=True):
                taken.append(simulate(method, problem, workers, computed))
        cells = (f"{1e6 * statistics.median(taken) / computed:24.0f}" for taken in times)
        print(f"  {workers:7} " + "".join(cells), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  most memory of the process so far: {peak:.0f} MiB")


@message
class Token:
    number: int


@dataclass(frozen=True, kw_only=True)
class PassOn(Method):
    """Every worker passes a token to the next."""

    async def step(self, node: Node) -> None:
        node.send((node.rank + 1) % node.size, Token(node.round))
        await node.recv(Token)


@dataclass(frozen=True, kw_only=True)
class Doze(Method):
    """Every worker sleeps, again and again."""

    async def step(self, node: Node) -> None:
        await node.sleep(1e-3)


def by_event(seconds: float, repeats: int) -> None:
    """Cost of an event that computes nothing."""
    print(f"\nus an event, 64 workers, {repeats} repetitions")
    for name, method in (("message, sent and received", PassOn()), ("sleep", Doze())):
        experiment = Experiment(
            method=method,
            problem=digits(16, 64),
            cluster=Cluster(workers=64, compute=Constant(), latency=1e-3),
            optimizer=SGD,
            budget=Budget(seconds=seconds),
        )
        costs: list[float] = []
        for _ in range(repeats):
            simulation = Simulation(experiment)
            began = time.perf_counter()
            simulation.run()
            events = sum(node.round for node in simulation.nodes)
            costs.append(1e6 * (time.perf_counter() - began) / events)
        print(f"  {name:28} {statistics.median(costs):5.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=options.QUICK)
    parser.add_argument("--repeats", type=options.rounds, help="of everything (7; 1 if quick)")
    parser.add_argument("--only", choices=["gradients", "events", "workers"])
    asked = parser.parse_args(arguments)
    quick, only = asked.quick, asked.only
    repeats = asked.repeats or (1 if quick else 7)
    print(f"{os.cpu_count()} cores, torch {torch.__version__}")
    if only in (None, "gradients"):
        for batch_size in (16,) if quick else (16, 32):
            problem, gradients = digits(batch_size, 64), 640 if quick else 6400
            against_plain_loop("digits, MLP 64-32-10", problem, gradients, repeats)
        problem, gradients = mnist_shaped(32), 64 if quick else 2560
        against_plain_loop("LeNet-5, 28x28 images", problem, gradients, repeats)
    if only in (None, "events"):
        by_event(0.05 if quick else 1.0, repeats)
    if only in (None, "workers"):
        if quick:
            by_workers((8,), 64, repeats)
        else:
            by_workers((8, 64, 512, 4096), 6400, max(1, repeats // 2))


if __name__ == "__main__":
    main()
