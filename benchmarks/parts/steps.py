"""Synchronous steps: what communication adds to a step, against DDP and decent-dp.

The floor is two processes that train alone at the same time, in a plain loop; with the allocator's
defaults or with offbeat's setting of it, whichever is the faster. What a contestant takes above it
is the price of its communication; ratios are of these. D-PSGD by hand is what is left of that where
nothing is general. Figures of when the two cores were far from
each other do not count.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from common import ours
from common.cores import Trials
from common.figures import Part
from common.groups import Contestant, Group
from common.workloads import RandomData
from rivals import by_hand, decent, floor, gloo

from offbeat.method import Method
from offbeat.methods import DPSGD, AllReduceSGD, StochasticGradientPush

METHODS: dict[str, Method] = {
    "AllReduceSGD": AllReduceSGD(),
    "DPSGD": DPSGD(),
    "StochasticGradientPush": StochasticGradientPush(),
}
TOPOLOGIES = ("ring", "complete")
SETTLED_SECONDS = 6.5
"""After which a run has all its memory, in huge pages."""
MEASURED_SECONDS = 1.0
STEPS = {"mlp": 40, "lenet5": 200}
TITLES = {"mlp": "MLP 784-2048-2048-10, batch 32", "lenet5": "LeNet-5, batch 32"}


def measure(*, rounds: int, quick: bool) -> list[Part]:
    networks = ["lenet5"] if quick else list(STEPS)
    settled = 0.0 if quick else SETTLED_SECONDS
    return [
        _measure(network, rounds, 10 if quick else STEPS[network], settled) for network in networks
    ]


def _measure(network: str, rounds: int, steps: int, settled: float) -> Part:
    problem = RandomData(network=network)
    part = Part(name=f"steps of {network}", title=f"A step of {TITLES[network]}, 2 processes, ms")
    with ExitStack() as stack:

        def group(contestant: Contestant, *settings: Any) -> Group:
            return stack.enter_context(Group(contestant, problem, *settings))

        groups = {
            "alone": group(floor.alone, False),
            "alone, freed memory kept": group(floor.alone, True),
            "DDP": group(gloo.ddp),
            "D-PSGD by hand": group(by_hand.d_psgd),
        }
        if importlib.util.find_spec("decent_dp"):
            for topology in TOPOLOGIES:
                groups[f"decent-dp, {topology}"] = group(decent.decent_dp, topology)
        else:
            part.notes.append("decent-dp is not installed: left out")
        for name, method in METHODS.items():
            groups[f"{name}, own loop"] = group(ours.loop, method)
        contestants: dict[str, Callable[[], list[float]]] = {
            name: functools.partial(contestant.burst, steps) for name, contestant in groups.items()
        }
        for name, method in METHODS.items():
            contestants[f"{name}, offbeat.run"] = functools.partial(_run, method, problem, settled)
        trials = Trials()
        for _ in range(rounds):
            for name, measure in contestants.items():
                trials.take(name, functools.partial(_milliseconds, measure))
    part.rounds = {name: trials.values(name) for name in contestants}
    part.notes.append(str(trials))
    _compare(part)
    return part


def _milliseconds(measure: Callable[[], list[float]]) -> float:
    return 1e3 * statistics.median(measure())


def _run(method: Method, problem: RandomData, settled: float) -> list[float]:
    """Like the other contestants, which began long ago, a run is measured when it has settled."""
    run = ours.run_for(method, problem, workers=2, seconds=settled + MEASURED_SECONDS)
    return ours.step_seconds(run, since=settled)


def _compare(part: Part) -> None:
    floor = min(part.median("alone"), part.median("alone, freed memory kept"))

    def above_floor(what: str) -> float:
        return part.median(what) - floor

    rivals = {"DDP": ("AllReduceSGD", "DDP", 0.25)}
    peers = [what for what in part.rounds if what.startswith("decent-dp")]
    if peers:
        best = min(peers, key=part.median)
        rivals |= {name: (name, best, 0.4) for name in ("DPSGD", "StochasticGradientPush")}
    for name, rival, target in rivals.values():
        for way in ("offbeat.run", "own loop"):
            what = f"{name}, {way}"
            part.compare(
                f"({what} - floor) / ({rival} - floor)",
                above_floor(what) / above_floor(rival),
                target,
            )
