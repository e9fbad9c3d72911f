"""What the parts of chaos.py have in common: methods, the experiment, what came of a run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from offbeat.cluster import Cluster, Constant
from offbeat.experiment import Budget, Experiment
from offbeat.methods import METHODS, SGD
from offbeat.problems import Digits
from offbeat.testing import small_experiment
from offbeat.testing.observed import ObservedRun
from offbeat.testing.remains import Belongings

WORKERS = 4
SAMPLES = 6_400
LONG = 32_000
"""Samples of a run that somebody joins late."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked of every part.

    Args:
        only: names of methods; all if not given.
        runs: kills of each method; some parts make fewer.
        deadline: seconds after which a run counts as hung.
    """

    only: tuple[str, ...] | None
    runs: int
    seed: int
    deadline: float

    @property
    def few(self) -> int:
        """How often what takes long is done."""
        return max(2, self.runs // 5)

    def chosen(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.only is None or name in self.only]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run.

    Args:
        what: what was done to it.
        done: whether that came about before the run's end.
        wrong: what should not have been, a line each.
    """

    part: str
    method: str
    what: str
    done: bool
    seconds: float
    wrong: list[str]


def observed(part: str, method: str, what: str, carry: Callable[[Path], ObservedRun]) -> Outcome:
    """What comes of a run in a folder of its own; afterwards nothing of it may be there."""
    before, began = Belongings.now(), time.monotonic()
    done = False
    with tempfile.TemporaryDirectory(prefix="offbeat-chaos-", dir="/tmp") as folder:
        try:
            run = carry(Path(folder))
            wrong, done, seconds = run.wrong(), run.struck, run.seconds
        except Exception as error:
            wrong, seconds = [f"{type(error).__name__}: {error}"], time.monotonic() - began
    wrong += before.remains()
    return Outcome(part=part, method=method, what=what, done=done, seconds=seconds, wrong=wrong)


def experiment(name: str, samples: int = SAMPLES) -> Experiment:
    return small_experiment(
        METHODS[name](),
        problem=Digits(),
        # On a busy machine too every worker gets its part of the gradients.
        cluster=Cluster(workers=WORKERS, compute=Constant(seconds=0.002)),
        inject=True,
        budget=Budget(samples=samples),
        lr=0.05,
    )


def survivors() -> list[str]:
    """Methods whose workers have anything to do with each other, and go on without one."""
    return [name for name, m in METHODS.items() if m.survives_loss and m is not SGD]


def joinable() -> list[str]:
    """Those that let workers in late: who would share memory with the others cannot come late."""
    return [name for name in survivors() if not METHODS[name].shares_parameters]


def with_servers() -> list[str]:
    return [name for name, method in METHODS.items() if method().server_count]


def lossless() -> list[str]:
    return [name for name, method in METHODS.items() if not method.survives_loss]


def synchronous() -> list[str]:
    """Methods whose result does not depend on timing, while nobody is lost for good."""
    return [name for name, method in METHODS.items() if method.synchronous and method is not SGD]


def table(outcomes: Iterable[Outcome]) -> str:
    lines = [f"{'part':10} {'method':28} {'runs':>5} {'struck':>6} {'wrong':>5} {'longest':>8}"]
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.part, outcome.method), []).append(outcome)
    for (part, method), some in groups.items():
        struck, wrong = sum(o.done for o in some), sum(bool(o.wrong) for o in some)
        longest = max(o.seconds for o in some)
        lines.append(f"{part:10} {method:28} {len(some):5} {struck:6} {wrong:5} {longest:6.1f} s")
    return "\n".join(lines)
