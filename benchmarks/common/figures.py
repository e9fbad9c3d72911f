"""Figures: one number for each round, their median, and what it is compared with."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One number to be held against a target.

    Args:
        above: the target is the least that is good, rather than the most.
        between: where nine of ten are when rounds are drawn again from those there were.
    """

    what: str
    value: float
    target: float | None = None
    above: bool = False
    between: tuple[float, float] | None = None

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.above else self.value <= self.target


@dataclass(kw_only=True)
class Part:
    """What one part of the benchmark has measured.

    Args:
        title: of its table, with the unit of all figures.
        rounds: for each thing measured one number a round, each a median itself.
        ratios: of medians.
        notes: what a reader should know, a line each.
    """

    name: str
    title: str
    rounds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    ratios: list[Ratio] = field(default_factory=list[Ratio])
    notes: list[str] = field(default_factory=list[str])

    def add(self, what: str, value: float) -> None:
        self.rounds.setdefault(what, []).append(value)

    def median(self, what: str) -> float:
        return statistics.median(self.rounds[what])

    def compare(
        self,
        what: str,
        value: float,
        target: float | None = None,
        *,
        above: bool = False,
        also: Sequence[float] = (),
    ) -> None:
        """Note a ratio, with what it might have been instead: its values of resampled rounds."""
        between = None
        if also:
            twentieths = statistics.quantiles(also, n=20)
            between = (twentieths[0], twentieths[-1])
        self.ratios.append(
            Ratio(what=what, value=value, target=target, above=above, between=between)
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "medians": {what: self.median(what) for what in self.rounds},
            "rounds": self.rounds,
            "ratios": [
                {
                    "what": ratio.what,
                    "value": ratio.value,
                    "between": ratio.between,
                    "target": ratio.target,
                    "met": ratio.met,
                }
                for ratio in self.ratios
            ],
            "notes": self.notes,
        }


def show(parts: Iterable[Part]) -> None:
    console = Console(highlight=False)
    for part in parts:
        table = Table(title=part.title, title_justify="left")
        table.add_column()
        for column in ("median", "least", "greatest"):
            table.add_column(column, justify="right")
        for what, values in part.rounds.items():
            numbers = (part.median(what), min(values), max(values))
            table.add_row(what, *[_number(number) for number in numbers])
        console.print(table)
        for ratio in part.ratios:
            print(f"{ratio.what}: {_number(ratio.value)}{_between(ratio)}{_verdict(ratio)}")
        for note in part.notes:
            print(f"note: {note}")
        print()


def _number(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _between(ratio: Ratio) -> str:
    if ratio.between is None:
        return ""
    return " [{} to {}]".format(*map(_number, ratio.between))


def _verdict(ratio: Ratio) -> str:
    if ratio.target is None:
        return ""
    side = "at least" if ratio.above else "at most"
    return f" (target {side} {ratio.target:g}: {'met' if ratio.met else 'not met'})"
