"""Real runs, measured beside what else there is: synchronous steps, means, servers, the scheduler.

    python benchmarks/real.py all
    python benchmarks/real.py steps mean --rounds 5 --out figures.json

Every contestant has its own processes of one thread. They take turns, round by round, so that what
slows the machine down slows all alike; a figure is the median over the rounds, a ratio one of
medians. What is not installed (`pip install -e '.[bench]'`) is left out, and said so.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

import torch
from common import options
from common.figures import show
from parts import mean, scheduler, server, steps

PARTS = {
    "steps": steps.measure,
    "mean": mean.measure,
    "server": server.measure,
    "scheduler": scheduler.measure,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all"], metavar="PART",
                        help=", ".join([*PARTS, "all"]))  # fmt: skip
    parser.add_argument(
        "--rounds", type=options.rounds, help="turns of each contestant (7; 1 if quick)"
    )
    asked = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    names = list(PARTS) if "all" in asked.parts else list(dict.fromkeys(asked.parts))
    turns = asked.rounds or (1 if asked.quick else 7)
    torch.set_num_threads(1)
    measured = [part for name in names for part in PARTS[name](rounds=turns, quick=asked.quick)]
    show(measured)
    if asked.quick:
        print("so few steps show that it works; their figures mean nothing")
    figures = {
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "torch": torch.__version__,
            "load before": load,
        },
        "rounds": turns,
        "parts": {part.name: part.as_json() for part in measured},
    }
    options.write(figures, asked.out)


if __name__ == "__main__":
    main()
