"""The table of outcomes, and what is said beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from ...hogwild import Outcome
from ..columns import Column, fitted


@dataclass(frozen=True, kw_only=True)
class Row:
    """An outcome as text, and as the figures that the pictures are of."""

    outcome: Outcome
    speed_up: float
    """Seconds of the serial run with the same delay, over its own; NaN without one."""

    def cells(self) -> dict[str, str]:
        """Text by column; "" where there is nothing to say."""
        outcome, settings = self.outcome, self.outcome.settings
        kind = "simulated" if outcome.simulated else f"thread{'s' * (settings.workers != 1)}"
        cells = {
            "scheme": settings.scheme,
            "workers": f"{settings.workers} {kind}",
            "delay": f"{settings.delay * 1e6:g} us" if settings.delay else "",
            "seconds": f"{outcome.seconds:.3g}",
            "speed-up": "" if math.isnan(self.speed_up) else f"{self.speed_up:.2f}",
            "objective": f"{outcome.objective:.4g}",
        }
        cells |= {name: f"{value:.4g}" for name, value in outcome.errors.items()}
        met = outcome.collisions
        if met is not None:
            cells["collided"] = f"{met.collision_rate:.3%}"
            cells["lost"] = f"{met.loss_rate:.4%}"
            cells["lag"] = f"{met.mean_lag:.2f}"
        return cells


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """One for each outcome, compared with the serial one of its problem, kind and delay."""
    serial = {
        _alike(outcome): outcome for outcome in outcomes if outcome.settings.scheme == "serial"
    }
    found = list[Row]()
    for outcome in outcomes:
        alone = serial.get(_alike(outcome))
        # Averaging makes as many passes as it has workers.
        compared = outcome.settings.scheme != "averaging" and outcome.seconds > 0
        ratio = alone.seconds / outcome.seconds if alone and compared else math.nan
        found.append(Row(outcome=outcome, speed_up=ratio))
    return found


def _alike(outcome: Outcome) -> tuple[str, bool, float]:
    return outcome.problem, outcome.simulated, outcome.settings.delay


def by_problem(outcomes: Sequence[Outcome]) -> dict[str, list[Row]]:
    """The rows of each problem, in the order in which they were run."""
    groups: dict[str, list[Row]] = {}
    for row in rows(outcomes):
        groups.setdefault(row.outcome.problem, []).append(row)
    return groups


def columns(group: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Titles, and the cells of each row; columns that say nothing are left out."""
    cells = [row.cells() for row in group]
    titles = [
        title
        for title in dict.fromkeys(title for row in cells for title in row)
        if any(row.get(title) for row in cells)
    ]
    return titles, [[row.get(title, "") for title in titles] for row in cells]


def about(outcome: Outcome) -> str:
    """How large and how sparse the problem is."""
    optimum = "" if outcome.optimum is None else f", least objective {outcome.optimum:.4g}"
    return f"{outcome.edges:,} edges, {outcome.sparsity}{optimum}"


def notes(group: Sequence[Row]) -> list[str]:
    """What a reader of the figures has to know."""
    machines = [row.outcome.machine for row in group if not row.outcome.simulated]
    said = [f"threads on {machine}" for machine in dict.fromkeys(machines)]
    if any(row.outcome.simulated for row in group):
        said.append("seconds of simulated workers are virtual, by the access times of --times")
    if any(row.outcome.settings.adds == "plain" and _lost_by_threads(row) for row in group):
        said.append("what threads lost is an estimate, by counters that are added to beside x")
    said += [note for row in group for note in row.outcome.notes]
    return list(dict.fromkeys(said))


def _lost_by_threads(row: Row) -> bool:
    return row.outcome.collisions is not None and not row.outcome.simulated


def print_outcomes(outcomes: Sequence[Outcome], out: Console) -> None:
    """The table of each problem."""
    for problem, group in by_problem(outcomes).items():
        # A setting may hold brackets, which are no markup.
        out.print(f"[bold]{escape(problem)}[/bold]: {about(group[0].outcome)}", highlight=False)
        titles, lines = columns(group)
        head, *rest = (
            Column(title=title, cells=cells, justify="left" if title == "scheme" else "right")
            for title, cells in zip(titles, zip(*lines, strict=True), strict=True)
        )
        for table in fitted([head], rest, out.width):
            out.print(table)
        for note in notes(group):
            out.print(f"({note})", markup=False, highlight=False, soft_wrap=True)
        out.print()
