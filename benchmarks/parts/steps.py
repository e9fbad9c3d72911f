"""Synchronous steps: what communication adds to a step, against DDP and decent-dp.

The floor is two processes that train alone at the same time, in a plain loop; with the allocator's
defaults or with offbeat's setting of it, whichever is the faster. What a contestant takes above it
is the price of its communication; ratios are of these. D-PSGD and SGP by hand are what is left of
that where nothing is general. Figures of when the two cores were far from each other do not count.

Steps of the same program differ from process to process, for as long as each lives, so that every
contestant is started several times, and has its turns each time.
"""

from __future__ import annotations

import functools
import importlib.util
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from common import ours
from common.cores import Trials
from common.figures import Part
from common.groups import Group
from common.running import Running
from common.workloads import RandomData
from rivals import by_hand, decent, floor, gloo

from offbeat.method import Method
from offbeat.methods import DPSGD, AllReduceSGD, StochasticGradientPush

METHODS: dict[str, Method] = {
    "AllReduceSGD": AllReduceSGD(),
    "DPSGD": DPSGD(),
    "StochasticGradientPush": StochasticGradientPush(),
}
WAYS = ("own loop", "offbeat.run")
BY_HAND = {"D-PSGD by hand": by_hand.d_psgd, "SGP by hand": by_hand.push_sum}
TOPOLOGIES = ("ring", "complete")
LIVES = 3
"""How often every contestant is started."""
STEPS = {"mlp": 20, "lenet5": 100}
"""Of a turn."""
SETTLING_STEPS = {"mlp": 30, "lenet5": 200}
"""Of everyone's first turn, which does not count."""
TITLES = {"mlp": "MLP 784-2048-2048-10, batch 32", "lenet5": "LeNet-5, batch 32"}
RESAMPLED = 1000

Contest = dict[str, Group | Running]


def measure(*, rounds: int, quick: bool) -> list[Part]:
    networks = ["lenet5"] if quick else list(STEPS)
    return [_measure(network, rounds, quick) for network in networks]


def _measure(network: str, rounds: int, quick: bool) -> Part:
    problem = RandomData(network=network)
    part = Part(name=f"steps of {network}", title=f"A step of {TITLES[network]}, 2 processes, ms")
    trials, shuffled = Trials(), random.Random(0)
    for _ in range(1 if quick else LIVES):
        with ExitStack() as stack:
            contest = _start(problem, stack)
            if not quick:
                for contestant in contest.values():
                    contestant.burst(SETTLING_STEPS[network])
            for _ in range(rounds):
                for name in shuffled.sample(list(contest), len(contest)):
                    steps = 10 if quick else STEPS[network]
                    trials.take(name, functools.partial(_milliseconds, contest[name], steps))
    part.rounds = {name: trials.values(name) for name in contest}
    part.notes.append(str(trials))
    if not any(name.startswith("decent-dp") for name in contest):
        part.notes.append("decent-dp is not installed: left out")
    _compare(part)
    return part


def _start(problem: RandomData, stack: ExitStack) -> Contest:
    """All contestants, each with processes of its own, which are stopped until its turn."""

    def loops(contestant: Callable[..., Any], *settings: Any) -> Group:
        return stack.enter_context(Group(contestant, problem, *settings))

    contest: Contest = {
        "alone": loops(floor.alone, False),
        "alone, freed memory kept": loops(floor.alone, True),
        "DDP": loops(gloo.ddp),
    }
    contest |= {name: loops(contestant) for name, contestant in BY_HAND.items()}
    if importlib.util.find_spec("decent_dp"):
        for topology in TOPOLOGIES:
            contest[f"decent-dp, {topology}"] = loops(decent.decent_dp, topology)
    for name, method in METHODS.items():
        contest[f"{name}, own loop"] = loops(ours.loop, method)
    for name, method in METHODS.items():
        contest[f"{name}, offbeat.run"] = stack.enter_context(Running(method, problem))
    return contest


def _milliseconds(contestant: Group | Running, steps: int) -> float:
    return 1e3 * statistics.median(contestant.burst(steps, warm=steps // 10))


def _compare(part: Part) -> None:
    medians = {name: part.median(name) for name in part.rounds}
    again = list(_resampled(part))

    def compare(what: str, rival: str, target: float | None) -> None:
        part.compare(
            f"({what} - floor) / ({rival} - floor)",
            _ratio(medians, what, rival),
            target,
            also=[_ratio(others, what, rival) for others in again],
        )

    for way in WAYS:
        compare(f"AllReduceSGD, {way}", "DDP", 0.25)
    peers = [name for name in medians if name.startswith("decent-dp")]
    if peers:
        best = min(peers, key=part.median)
        for way in WAYS:
            for name in ("DPSGD", "StochasticGradientPush"):
                compare(f"{name}, {way}", best, 0.4)
        for name in BY_HAND:
            compare(name, best, None)


def _ratio(medians: dict[str, float], what: str, rival: str) -> float:
    floor = min(medians["alone"], medians["alone, freed memory kept"])
    return (medians[what] - floor) / (medians[rival] - floor)


def _resampled(part: Part) -> Iterator[dict[str, float]]:
    """Medians as they would be of other turns: of as many, drawn from those there were."""
    drawn = random.Random(0)
    for _ in range(RESAMPLED):
        yield {
            name: statistics.median(drawn.choices(values, k=len(values)))
            for name, values in part.rounds.items()
        }
