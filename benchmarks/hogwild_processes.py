"""Hogwild!, one process against two: ours, and PyTorch's own example.

    python benchmarks/hogwild_processes.py
    python benchmarks/hogwild_processes.py --quick

The network and settings of `mnist_hogwild` in pytorch/examples, on random images of MNIST's shape.
The example's processes share the module by `share_memory()`, read and write it as they go, and
have as many threads as PyTorch gives them by default, or one. The same loops with a module each
show what the machine allows. All variants take turns, and each time train for some seconds; the
figures are medians over the rounds.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Its tensors are shared with the processes that they are passed to.
import torch.multiprocessing
import torch.nn.functional as F
from common import options
from torch import Tensor, nn

import offbeat
from offbeat.methods import Hogwild
from offbeat.problems import Data, Problem, Split
from offbeat.runtime.forks import server_of_forks

BATCH = 64
RATE, MOMENTUM = 0.01, 0.5
IMAGES = 12_000


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logarithms of probabilities (b, 10) for images (b, 1, 28, 28)."""
        x = F.relu(F.max_pool2d(self.conv1(images), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = F.relu(self.fc1(x.view(-1, 320)))
        x = F.dropout(x, training=self.training)
        return F.log_softmax(self.fc2(x), dim=1)


@functools.cache
def random_images() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 1, 28, 28, generator=generator)
    return Split(images, torch.randint(10, (IMAGES,), generator=generator))


@dataclass(frozen=True, kw_only=True)
class RandomImages(Problem):
    batch_size: int = BATCH

    def model(self) -> nn.Module:
        return Net()

    def data(self) -> Data:
        few = random_images().take(torch.arange(BATCH))
        return Data(train=random_images(), validation=few, test=few)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.nll_loss(outputs, targets)

    def evaluate(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"loss": self.loss(outputs, targets).item()}


@dataclass(frozen=True, kw_only=True)
class Turn:
    """How long each variant trains at a time, in seconds.

    Args:
        warmup: before the clock starts.
        counted: from then on.
    """

    warmup: float = 0.5
    counted: float


def ours(processes: int, turn: Turn) -> float:
    """Samples per second of `offbeat.run`."""
    run = offbeat.run(
        Hogwild(),
        RandomImages(),
        cluster=offbeat.Cluster(workers=processes),
        optimizer=functools.partial(torch.optim.SGD, lr=RATE, momentum=MOMENTUM),
        budget=offbeat.Budget(seconds=turn.warmup + turn.counted),
        evaluate_every=1_000_000_000,
    )
    assert run.error is None, run.error
    after = run.trace.gradients["end_ns"] / 1e9 - turn.warmup
    return float(((after >= 0) & (after < turn.counted)).sum()) * BATCH / turn.counted


@dataclass(frozen=True, kw_only=True)
class Loops:
    """The example's training loop, in processes.

    Args:
        threads: of each process; PyTorch's choice if None.
        shared: whether they train one module or have one each.
    """

    threads: int | None
    shared: bool = True


def train(loops: Loops, model: nn.Module, rank: int, orders: Any) -> None:
    """One process: when told to, it trains for some seconds, and says how much."""
    if loops.threads is not None:
        torch.set_num_threads(loops.threads)
    if not loops.shared:
        model = copy.deepcopy(model)
    torch.manual_seed(1 + rank)
    model.train()
    train = random_images()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)

    def step() -> None:
        # The example's loader takes samples one by one; this is what it does at best.
        batch = torch.randint(IMAGES, (BATCH,))
        optimizer.zero_grad()
        loss = F.nll_loss(model(train.inputs[batch]), train.targets[batch])
        loss.backward()
        optimizer.step()

    orders.send("ready")
    while (order := orders.recv()) is not None:
        begin, end = order
        while time.monotonic() < begin:
            step()
        steps = 0
        while time.monotonic() < end:
            step()
            steps += 1
        orders.send(steps)


@contextlib.contextmanager
def example(loops: Loops, processes: int) -> Generator[Callable[[Turn], float]]:
    """Samples per second of so many processes, asked for as often as one likes."""
    context = server_of_forks()
    model = Net()
    model.share_memory()
    ends: list[Any] = []
    children: list[Any] = []
    for rank in range(processes):
        ours, theirs = context.Pipe()
        child = context.Process(target=train, args=(loops, model, rank, theirs), daemon=True)
        child.start()
        theirs.close()
        ends.append(ours)
        children.append(child)
    for end in ends:
        assert end.recv() == "ready"

    def measure(turn: Turn) -> float:
        begin = time.monotonic() + turn.warmup
        for end in ends:
            end.send((begin, begin + turn.counted))
        return sum(end.recv() for end in ends) * BATCH / turn.counted

    try:
        yield measure
    finally:
        for end in ends:
            end.send(None)
        for child in children:
            child.join()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument(
        "--rounds", type=options.rounds, help="turns of each variant (7; 1 if quick)"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="that count of a turn (3)")
    asked = parser.parse_args(arguments)
    rounds = asked.rounds or (1 if asked.quick else 7)
    turn = Turn(warmup=0.1, counted=0.3) if asked.quick else Turn(counted=asked.seconds)
    with contextlib.ExitStack() as stack:
        rivals = {
            "example, default threads": Loops(threads=None),
            "example, 1 thread": Loops(threads=1),
            "nothing shared, 1 thread": Loops(threads=1, shared=False),
        }
        variants: dict[tuple[str, int], Callable[[Turn], float]] = {
            ("offbeat, 1 thread", n): functools.partial(ours, n) for n in (1, 2)
        }
        for name, loops in rivals.items():
            for n in (1, 2):
                variants[name, n] = stack.enter_context(example(loops, n))
        figures: dict[tuple[str, int], list[float]] = {variant: [] for variant in variants}
        for _ in range(rounds):
            for variant, measure in variants.items():
                figures[variant].append(measure(turn))
    median = {variant: statistics.median(values) for variant, values in figures.items()}
    print(f"samples per second, medians of {rounds} rounds, {os.cpu_count()} cores\n")
    print("| | 1 process | 2 processes | ratio |")
    print("|---|---|---|---|")
    for name in dict.fromkeys(name for name, _ in variants):
        one, two = median[name, 1], median[name, 2]
        # In so short a turn as a quick one there may be no step at all.
        print(f"| {name} | {one:,.0f} | {two:,.0f} | {two / one if one else math.nan:.2f} |")
    options.write({f"{name}, {n}": rates for (name, n), rates in figures.items()}, asked.out)


if __name__ == "__main__":
    main()
