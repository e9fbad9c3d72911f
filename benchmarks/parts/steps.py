"""Synchronous steps: what communication adds to a step, against DDP and decent-dp.

Every contestant's processes hold a second model, which each of them trains alone in a plain loop,
both at the same time. In a turn these steps and the contestant's alternate, some of each. What
counts is the difference, the price of communication, and ratios are of these. D-PSGD and SGP by
hand are what is left of it where nothing is general. Figures of when the two cores were far from
each other do not count.

Steps of the same program differ from process to process, for as long as each lives, which is why
they are compared within one; and from hour to hour. So every contestant is started several times,
and has its turns each time.
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
BLOCKS = 5
"""Of a turn, each of some steps of the contestant and some alone."""
STEPS = {"mlp": 5, "lenet5": 20}
"""Of either in a block."""
SETTLING_STEPS = {"mlp": 10, "lenet5": 60}
"""At the beginning of every turn; they do not count."""
TITLES = {"mlp": "MLP 784-2048-2048-10, batch 32", "lenet5": "LeNet-5, batch 32"}
RESAMPLED = 1000

ALONE = "a step alone"
Contest = dict[str, Group | Running]


def measure(*, rounds: int, quick: bool) -> list[Part]:
    networks = ["lenet5"] if quick else list(STEPS)
    return [_measure(network, rounds, quick) for network in networks]


def _measure(network: str, rounds: int, quick: bool) -> Part:
    problem = RandomData(network=network)
    title = f"What communication adds to a step of {TITLES[network]}, 2 processes, ms"
    part = Part(name=f"steps of {network}", title=title)
    trials, shuffled = Trials(), random.Random(0)
    alone: list[float] = []
    for _ in range(1 if quick else LIVES):
        with ExitStack() as stack:
            contest = _start(problem, stack)
            for _ in range(rounds):
                for name in shuffled.sample(list(contest), len(contest)):
                    turn = functools.partial(_added, contest[name], network, quick, alone)
                    trials.take(name, turn)
    part.rounds = {ALONE: alone} | {name: trials.values(name) for name in contest}
    part.notes.append(str(trials))
    if not any(name.startswith("decent-dp") for name in contest):
        part.notes.append("decent-dp is not installed: left out")
    _compare(part)
    return part


def _start(problem: RandomData, stack: ExitStack) -> Contest:
    """All contestants, each with processes of its own, which are stopped until its turn."""

    def loops(contestant: Callable[..., Any], *settings: Any) -> Group:
        beside = functools.partial(floor.alone, problem=problem)
        return stack.enter_context(Group(contestant, problem, *settings, beside=beside))

    contest: Contest = {"DDP": loops(gloo.ddp)}
    contest |= {name: loops(contestant) for name, contestant in BY_HAND.items()}
    if importlib.util.find_spec("decent_dp"):
        for topology in TOPOLOGIES:
            contest[f"decent-dp, {topology}"] = loops(decent.decent_dp, topology)
    for name, method in METHODS.items():
        contest[f"{name}, own loop"] = loops(ours.loop, method)
    for name, method in METHODS.items():
        contest[f"{name}, offbeat.run"] = stack.enter_context(Running(method, problem))
    return contest


def _added(contestant: Group | Running, network: str, quick: bool, alone: list[float]) -> float:
    """Milliseconds by which its steps take longer than those of its processes alone.

    Args:
        alone: gets what these took.
    """
    if not quick:
        contestant.burst(SETTLING_STEPS[network])
    steps = STEPS[network]

    def taken(*, beside: bool) -> float:
        return 1e3 * statistics.median(contestant.burst(steps, warm=steps // 5, beside=beside))

    added: list[float] = []
    for block in range(1 if quick else BLOCKS):
        # Which of them comes first alternates, so that what changes meanwhile is no difference.
        found = {beside: taken(beside=beside) for beside in (block % 2 == 0, block % 2 == 1)}
        alone.append(found[True])
        added.append(found[False] - found[True])
    return statistics.median(added)


def _compare(part: Part) -> None:
    medians = {name: part.median(name) for name in part.rounds}
    again = list(_resampled(part))

    def compare(what: str, rival: str, target: float | None) -> None:
        part.compare(
            f"{what} / {rival}",
            medians[what] / medians[rival],
            target,
            also=[others[what] / others[rival] for others in again],
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


def _resampled(part: Part) -> Iterator[dict[str, float]]:
    """Medians as they would be of other turns: of as many, drawn from those there were."""
    drawn = random.Random(0)
    for _ in range(RESAMPLED):
        yield {
            name: statistics.median(drawn.choices(values, k=len(values)))
            for name, values in part.rounds.items()
        }
