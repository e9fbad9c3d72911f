"""A step of LARS and of LAMB on the parameters of a ResNet-50, against timm's.

    python benchmarks/optimizers.py
    python benchmarks/optimizers.py --quick

timm is left out where it is missing; `pip install --no-deps -c constraints.txt timm` is enough.
It has two implementations of each, tensor by tensor and by foreach; ours has to keep up with the
faster. All step on the same tensors, in turns. Steps of torch.optim show what the machine can do.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from common import figures, options
from torch import nn
from torch.optim import Optimizer

from offbeat.optim import LAMB, LARS, without_decay

RATE = 1e-6
"""So small that the parameters stay what they are."""
DECAY = 1e-4
AT_MOST = 1.2
"""Times timm's step."""


def resnet50_shapes(width: int = 64) -> Iterator[tuple[int, ...]]:
    """Shapes of the 161 tensors of a ResNet-50: 25.6 million numbers at its width of 64."""
    yield from _convolution(3, width, 7)
    entering = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width << stage
        for block in range(blocks):
            yield from _convolution(entering, inner, 1)
            yield from _convolution(inner, inner, 3)
            yield from _convolution(inner, 4 * inner, 1)
            if block == 0:
                yield from _convolution(entering, 4 * inner, 1)
            entering = 4 * inner
    yield (1000, entering)
    yield (1000,)


def _convolution(entering: int, leaving: int, side: int) -> Iterator[tuple[int, ...]]:
    """Its kernels, and the gain and shift of the batch norm after it."""
    yield (leaving, entering, side, side)
    yield (leaving,)
    yield (leaving,)


def contestants(parameters: list[nn.Parameter]) -> dict[str, Optimizer]:
    groups = without_decay((str(k), p) for k, p in enumerate(parameters))
    plain: dict[str, Callable[..., Optimizer]] = {
        "LARS": functools.partial(LARS, momentum=0.9),
        "LAMB": LAMB,
        "torch.optim.SGD": functools.partial(torch.optim.SGD, momentum=0.9),
        "torch.optim.AdamW": torch.optim.AdamW,
    }
    try:
        from rivals.timm_optimizers import Lamb, Lars
    except ImportError:
        print("timm is not installed: left out")
    else:
        for foreach in (False, True):
            how = "foreach" if foreach else "each"
            settings: dict[str, Any] = {"foreach": foreach}
            plain[f"timm Lars, {how}"] = functools.partial(Lars, momentum=0.9, **settings)
            # Clipping is no part of LAMB.
            plain[f"timm Lamb, {how}"] = functools.partial(Lamb, max_grad_norm=None, **settings)
    return {
        name: made([dict(group) for group in groups], lr=RATE, weight_decay=DECAY)
        for name, made in plain.items()
    }


def measure(width: int, rounds: int) -> figures.Part:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in resnet50_shapes(width)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    count = sum(p.numel() for p in parameters)
    part = figures.Part(
        name="optimizers",
        title=f"One step on {len(parameters)} tensors, {count / 1e6:.3g} million numbers, ms",
    )
    optimizers = contestants(parameters)
    for optimizer in optimizers.values():
        optimizer.step()  # The first makes the buffers.
    for _ in range(rounds):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            part.add(name, 1e3 * (time.perf_counter() - start))
    for ours, theirs in (("LARS", "timm Lars"), ("LAMB", "timm Lamb")):
        rivals = [part.median(name) for name in optimizers if name.startswith(theirs)]
        if rivals:
            ratio = part.median(ours) / min(rivals)
            part.compare(f"{ours} / the faster {theirs}", ratio, AT_MOST)
    return part


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument(
        "--rounds", type=options.rounds, help="turns of each optimizer (31; 2 if quick)"
    )
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    part = measure(
        width=4 if asked.quick else 64, rounds=asked.rounds or (2 if asked.quick else 31)
    )
    figures.show([part])
    options.write(part.as_json(), asked.out)


if __name__ == "__main__":
    main()
