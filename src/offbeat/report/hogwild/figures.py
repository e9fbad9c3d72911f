"""What the pictures show, as numbers: drawn by Plotly on the page and by matplotlib as PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .table import Row

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#8B5E3C", "#777777")
MAPPED = 4
"""Runs whose collisions are mapped."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart."""

    name: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over axes."""

    name: str
    title: str
    x: str
    y: str
    lines: list[Line]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Map:
    """Fraction of each vertex's updates that collided, in a square; NaN where there was none.

    The vertices are in the order of how often they were updated, row by row.
    """

    title: str
    rates: NDArray[np.float64]


def charts(rows: Sequence[Row]) -> list[Chart]:
    """Those of which there is something to be seen."""
    problems = dict.fromkeys(row.outcome.problem for row in rows)
    found = [
        _progress([row for row in rows if row.outcome.problem == problem], k, len(problems))
        for k, problem in enumerate(problems)
    ]
    found += [_delays(rows), _workers(rows)]
    found += [_collisions_by_workers(rows), _collisions_by_sparsity(rows)]
    return [chart for chart in found if chart.lines]


def maps(rows: Sequence[Row]) -> list[Map]:
    """Of runs without locks: those with most workers of each problem, or of the one problem all."""
    met = [
        row
        for row in rows
        if row.outcome.collisions is not None and row.outcome.settings.scheme == "hogwild"
    ]
    met.sort(key=_workers_of)
    most = list({row.outcome.problem: row for row in met}.values())
    return [_map(row) for row in (most if len(most) > 1 else met)[-MAPPED:]]


def _progress(rows: Sequence[Row], number: int, of: int) -> Chart:
    lines = [
        Line(
            name=row.outcome.label,
            x=[epoch.seconds for epoch in row.outcome.epochs[1:]],
            y=[epoch.objective for epoch in row.outcome.epochs[1:]],
        )
        for row in rows
    ]
    return Chart(
        name="objective" if of == 1 else f"objective-{number + 1}",
        title=f"Objective after each epoch: {rows[0].outcome.problem}",
        x="seconds",
        y="objective",
        lines=lines,
        log_x=all(x > 0 for line in lines for x in line.x),
    )


def _delays(rows: Sequence[Row]) -> Chart:
    """The paper's figure 5: speed-up against the time that a gradient takes."""
    lines = _grouped(
        [row for row in rows if not math.isnan(row.speed_up) and _workers_of(row) > 1],
        lambda row: (row.outcome.problem, row.outcome.settings.scheme, _workers_of(row)),
        lambda row: row.outcome.settings.delay * 1e6,
        lambda row: row.speed_up,
    )
    return Chart(
        name="delay",
        title="Speed-up against a delay per gradient",
        x="delay (us)",
        y="speed-up",
        lines=lines,
        log_x=all(x > 0 for line in lines for x in line.x),
    )


def _workers(rows: Sequence[Row]) -> Chart:
    lines = _grouped(
        [row for row in rows if not math.isnan(row.speed_up)],
        _run_of,
        _workers_of,
        lambda row: row.speed_up,
    )
    return _log("speed-up", "Speed-up against workers", "workers", "speed-up", lines)


def _collisions_by_workers(rows: Sequence[Row]) -> Chart:
    lines = _grouped(_met(rows), _run_of, _workers_of, _percent)
    title = "Updates that collided, against workers"
    return _log("collisions-by-workers", title, "workers", "collided (%)", lines)


def _collisions_by_sparsity(rows: Sequence[Row]) -> Chart:
    lines = _grouped(
        _met(rows),
        lambda row: (row.outcome.settings.scheme, _workers_of(row), row.outcome.simulated),
        lambda row: row.outcome.sparsity.rho,
        _percent,
    )
    axis = "rho: the fraction of edges that an edge meets at most"
    title = "Updates that collided, against rho"
    return _log("collisions-by-sparsity", title, axis, "collided (%)", lines)


def _log(name: str, title: str, x: str, y: str, lines: list[Line]) -> Chart:
    return Chart(name=name, title=title, x=x, y=y, lines=lines, log_x=True, log_y=True)


def _met(rows: Sequence[Row]) -> list[Row]:
    """The runs in which workers could collide, and it was noted."""
    return [row for row in rows if row.outcome.collisions is not None and _workers_of(row) > 1]


def _run_of(row: Row) -> tuple[object, ...]:
    return row.outcome.problem, row.outcome.settings.scheme, row.outcome.simulated


def _percent(row: Row) -> float:
    met = row.outcome.collisions
    return 0.0 if met is None else 100 * met.collision_rate


def _grouped(
    rows: Sequence[Row],
    key: Callable[[Row], tuple[object, ...]],
    x: Callable[[Row], float],
    y: Callable[[Row], float],
) -> list[Line]:
    """Lines of at least two points with different x, in the order of their x."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    lines = list[Line]()
    for parts, group in groups.items():
        points = sorted((x(row), y(row)) for row in group)
        if len({point[0] for point in points}) > 1:
            name = ", ".join(_words(part) for part in parts)
            lines.append(Line(name=name, x=[p[0] for p in points], y=[p[1] for p in points]))
    return lines


def _words(part: object) -> str:
    if isinstance(part, bool):
        return "simulated" if part else "threads"
    return f"{part} workers" if isinstance(part, int) else str(part)


def _map(row: Row) -> Map:
    met = row.outcome.collisions
    assert met is not None
    side = math.isqrt(len(met.updates) - 1) + 1
    rates = np.full(side * side, np.nan)
    order = np.argsort(-met.updates, kind="stable")
    with np.errstate(invalid="ignore"):
        rates[: len(order)] = met.collided[order] / met.updates[order]
    return Map(title=f"{row.outcome.problem}, {row.outcome.label}", rates=rates.reshape(side, side))


def _workers_of(row: Row) -> int:
    return row.outcome.settings.workers
