"""Two cores that write to the same memory: what a cache line's way takes, and what that costs.

A virtual machine's cores move. While they share a cache a line goes from one to the other in some
50 ns, and else it may take four times as long, and what two processes share with it.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offbeat.hogwild.atomics import atomic_load, atomic_store, nanoseconds
from offbeat.hogwild.compiling import compiled

NEAR_NS = 100.0
"""A cache line takes less between cores that share a cache."""
PASSES = 20_000


@dataclass
class Trials:
    """Figures by name, each with the nanoseconds that a cache line took before it or after."""

    taken: dict[str, list[tuple[float, float]]] = field(
        default_factory=dict[str, list[tuple[float, float]]]
    )

    def take(self, name: str, measure: Callable[[], float]) -> None:
        before = transfer()
        value = measure()
        self.taken.setdefault(name, []).append((max(before, transfer()), value))

    def values(self, name: str) -> list[float]:
        """The figures that count: of when the cores were near each other, if they ever were."""
        return [value for _, value in _near(self.taken[name])]

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(self.values(name)) for name in self.taken}

    @property
    def transfer(self) -> float:
        """Median nanoseconds of a cache line, with those that count."""
        kept = (_near(taken) for taken in self.taken.values())
        return statistics.median(ns for taken in kept for ns, _ in taken)

    @property
    def aside(self) -> int:
        """Figures that do not count."""
        return sum(len(taken) - len(_near(taken)) for taken in self.taken.values())

    def __str__(self) -> str:
        every = sum(map(len, self.taken.values()))
        return (
            f"a cache line took {self.transfer:.0f} ns from core to core; {self.aside} of {every} "
            f"figures do not count, as it took more than {NEAR_NS:g} ns"
        )


def _near(taken: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    every = list(taken)
    return [(ns, value) for ns, value in every if ns < NEAR_NS] or every


def together(work: Callable[[int], object]) -> float:
    """Seconds in which two threads do `work(0)` and `work(1)`."""
    both = [threading.Thread(target=work, args=(mine,)) for mine in (0, 1)]
    begun = time.perf_counter()
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    return time.perf_counter() - begun


def transfer() -> float:
    """Nanoseconds that a cache line takes from one core to another."""
    turn, taken = np.zeros(1, np.int64), np.zeros(2, np.int64)
    together(lambda mine: pass_on(turn, mine, PASSES, taken))
    return float(taken[0] / PASSES / 2)


@compiled
def pass_on(turn: Any, mine: int, times: int, taken: Any) -> None:
    """Wait for one's turn, and give the other thread its own; as often before the clock starts.

    Threads may begin milliseconds one after the other.
    """
    for k in range(2 * times):
        if k == times:
            taken[mine] = nanoseconds()
        while atomic_load(turn, 0) != 2 * k + mine:
            pass
        atomic_store(turn, 0, 2 * k + mine + 1)
    taken[mine] = nanoseconds() - taken[mine]


@compiled
def read_and_write(
    features: Any, values: Any, writes: Any, x: Any, begin: int, end: int, passes: int
) -> None:
    """The accesses of sparse SGD, and hardly more: read a row's coordinates, and write them if so.

    Args:
        features: (rows, nonzeros) int32.
        values: (rows, nonzeros) float32.
        writes: (rows,) bool.
        x: (d,) float32.
        begin, end: the rows that are gone through.
        passes: how often.
    """
    width, rows = features.shape[1], end - begin
    for at in range(passes * rows):
        row = begin + at % rows
        score = x[0] * 0
        for k in range(width):
            score += x[features[row, k]] * values[row, k]
        if writes[row]:
            # So small that x stays 0: only the accesses count.
            change = score * np.float32(1e-30) + np.float32(1e-30)
            for k in range(width):
                x[features[row, k]] -= change * values[row, k]
