"""Plots of runs, as PNG: accuracy against time, and what each worker did when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..compare import Comparison
from ..runs import Run

# Okabe and Ito's colours, which the colour-blind tell apart, and a brown; a family shares one.
FAMILY_COLOURS = {
    "serial": "#555555",
    "all-reduce": "#0072B2",
    "parameter server": "#D55E00",
    "shared memory": "#8B5E3C",
    "decentralized": "#009E73",
    "local updates": "#AA4499",
    "user": "#E69F00",
}
DASHES: Sequence[Any] = ("-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
COMPUTING, WAITING, TRANSFERRING = "#56A0D3", "#E4E4E4", "#D55E00"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#888888",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
ROWS = 32
"""Nodes shown in a timeline."""
RANKED = 18
"""Methods in a legend up to which its lines are of the usual size."""
GRADIENTS = 36
"""How many gradients of the median worker a timeline spans."""


def plot_run(run: Run, directory: Path) -> list[Path]:
    """accuracy.png (or loss.png) and timeline.png of one run."""
    name = type(run.experiment.method).__name__
    return [plot_metric({name: [run]}, directory), plot_timelines({name: run}, directory)]


def plot_comparison(comparison: Comparison, directory: Path) -> list[Path]:
    """accuracy.png (or loss.png) and timeline.png of all methods that have a result."""
    runs = {entry.label: entry.runs for entry in comparison.entries if entry.runs}
    return [
        plot_metric(runs, directory, comparison.target),
        plot_timelines({label: several[0] for label, several in runs.items()}, directory),
    ]


def plot_metric(
    runs: Mapping[str, Sequence[Run]], directory: Path, target: float | None = None
) -> Path:
    """Accuracy against time, or the loss where there is no accuracy: a line per run.

    The legend is in the order in which methods reach the target.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _figure(9.5, 5.2)
        has_accuracy = any(
            not math.isnan(row.accuracy)
            for several in runs.values()
            for run in several
            for row in run.metrics
        )
        handles: list[tuple[float, Line2D, str]] = []
        for label, style in _styles(runs).items():
            arrivals: list[float] = []
            for run in runs[label]:
                rows = [row for row in run.metrics if row.seconds > 0]
                values = [row.accuracy if has_accuracy else row.loss for row in rows]
                axes.plot([row.seconds for row in rows], values, lw=1.8, **style)
                reached = run.reached(target) if target is not None else None
                arrivals.append(reached.seconds if reached else math.inf)
                if reached:
                    axes.plot(reached.seconds, reached.accuracy, "o", ms=6, color=style["color"])
            arrival = float(np.mean(arrivals))
            handles.append((arrival, Line2D([], [], lw=2.2, **style), label))
        if len(runs) > 1:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        mode = next(iter(runs.values()))[0].mode
        axes.set_xlabel("virtual seconds" if mode == "simulated" else "seconds")
        part = next(iter(runs.values()))[0].experiment.evaluate_on
        if has_accuracy:
            best = max(
                row.accuracy for several in runs.values() for r in several for row in r.metrics
            )
            _accuracy_scale(axes, best)
            axes.set_title(f"{part} accuracy against time")
        else:
            axes.set_yscale("log")
            axes.set_title(f"{part} loss against time")
        axes.grid(visible=True, color="#E8E8E8", lw=0.8)
        axes.set_axisbelow(True)
        if target is not None and has_accuracy:
            axes.axhline(target, color="#222222", lw=1, ls=(0, (5, 3)))
        _ranking(axes, handles, target if has_accuracy else None)
        return _save(figure, directory / ("accuracy.png" if has_accuracy else "loss.png"))


def plot_timelines(runs: Mapping[str, Run], directory: Path) -> Path:
    """What each node did when, in a part of each run: a panel per run, a row per node."""
    columns = min(2, len(runs))
    lines = math.ceil(len(runs) / columns)
    shown = max(min(_nodes(run), ROWS) for run in runs.values())
    height = lines * (0.75 + 0.115 * max(shown, 6)) + 0.9
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6 * columns + 0.4, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(lines, columns, squeeze=False)
        span = max(_span(run) for run in runs.values())
        for axes, (label, run) in zip(panels.flat, runs.items(), strict=False):
            _timeline(axes, run, span)
            axes.set_title(label)
        for axes in panels.flat[len(runs) :]:
            axes.set_axis_off()
        for axes in panels[-1]:
            mode = next(iter(runs.values())).mode
            axes.set_xlabel("virtual milliseconds" if mode == "simulated" else "milliseconds")
        figure.legend(
            handles=[
                Patch(color=COMPUTING, label="computing a gradient"),
                Patch(color=WAITING, label="waiting"),
                Line2D([], [], color=TRANSFERRING, lw=2.5, label="sending"),
            ],
            loc="outside upper right",
            ncols=3,
            frameon=False,
        )
        return _save(figure, directory / "timeline.png")


def _timeline(axes: Axes, run: Run, span: float) -> None:
    workers = run.experiment.cluster.workers
    shown = min(_nodes(run), ROWS)
    trace, start = run.trace, _begin(run)
    for table, colour in ((trace.waits, WAITING), (trace.gradients, COMPUTING)):
        for rank in range(shown):
            bars = _bars(table, "node", rank, start, span)
            # White edges set one gradient off from the next.
            axes.broken_barh(bars, (rank - 0.42, 0.84), facecolor=colour, edgecolor="w", lw=0.5)
    for rank in range(shown):
        # The edge keeps short transfers visible.
        axes.broken_barh(
            _bars(trace.messages, "source", rank, start, span),
            (rank + 0.06, 0.36),
            facecolor=TRANSFERRING,
            edgecolor=TRANSFERRING,
            lw=0.7,
        )
    axes.set_xlim(start * 1e3, (start + span) * 1e3)
    axes.set_ylim(shown - 0.4, -0.6)
    every = 1 if workers <= 8 else 5
    names = {rank: str(rank) for rank in range(0, min(workers, shown), every)}
    if shown > workers and every > 1:
        names = {rank: name for rank, name in names.items() if rank < workers - 1}
    alone = run.experiment.method.server_count == 1
    names |= {k: "server" if alone else f"server {k - workers}" for k in range(workers, shown)}
    axes.set_yticks(list(names), list(names.values()))
    axes.set_ylabel("worker")
    axes.tick_params(length=0, axis="y")
    axes.spines["left"].set_visible(False)


def _bars(
    table: np.ndarray[Any, Any], column: str, rank: int, start: float, span: float
) -> list[tuple[float, float]]:
    """(start, length) in milliseconds of what that node's rows say of the span."""
    rows = table[table[column] == rank]
    starts = np.maximum(rows["start_ns"] / 1e6, start * 1e3)
    ends = np.minimum(rows["end_ns"] / 1e6, (start + span) * 1e3)
    shown = ends >= starts
    return list(zip(starts[shown].tolist(), (ends - starts)[shown].tolist(), strict=True))


def _begin(run: Run) -> float:
    """Seconds into the run at which its timeline begins.

    Real runs are shown from their middle, when every process has long been warm.
    """
    return 0.0 if run.mode == "simulated" else run.seconds / 2


def _span(run: Run) -> float:
    """Seconds that a timeline shows."""
    table = run.trace.gradients
    if not len(table):
        return max(run.seconds, 1e-6)
    median = float(np.median(table["end_ns"] - table["start_ns"])) / 1e9
    return max(min(GRADIENTS * median, run.seconds), 1e-6)


def _nodes(run: Run) -> int:
    return run.experiment.cluster.workers + run.experiment.method.server_count


def _styles(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Any]]:
    """A colour per family, and within it a dash pattern per method."""
    used: dict[str, int] = {}
    styles: dict[str, dict[str, Any]] = {}
    for label, several in runs.items():
        family = several[0].experiment.method.family
        k = used.get(family, 0)
        used[family] = k + 1
        colour = FAMILY_COLOURS.get(family, FAMILY_COLOURS["user"])
        styles[label] = {"color": colour, "linestyle": DASHES[k % len(DASHES)]}
    return styles


def _accuracy_scale(axes: Axes, best: float) -> None:
    """Spread out the accuracies near 1, where methods differ: -log(1 - accuracy)."""
    floor = 1e-3
    axes.set_yscale(
        "function",
        functions=(
            lambda a: -np.log(np.maximum(1 - np.asarray(a), floor)),
            lambda y: 1 - np.exp(-np.asarray(y)),
        ),
    )
    levels = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995]
    top = 1 - (1 - min(best, 0.998)) * 0.85
    axes.set_ylim(0, top)
    axes.set_yticks([level for level in levels if level <= top])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda a, _: f"{a:.1%}".replace(".0%", " %")))


def _ranking(
    axes: Axes, handles: Sequence[tuple[float, Line2D, str]], target: float | None
) -> None:
    """The legend beside the axes, in order of arrival at the target."""
    ordered = sorted(handles, key=lambda entry: entry[0])
    labels = [
        label if target is None else f"{_arrival(seconds)}   {label}"
        for seconds, _, label in ordered
    ]
    legend = axes.legend(
        [handle for _, handle, _ in ordered],
        labels,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        frameon=False,
        handlelength=2.6,
        labelspacing=0.7 if len(ordered) <= RANKED else 0.2,
        fontsize="medium" if len(ordered) <= RANKED else 10 * RANKED / len(ordered),
        title=None if target is None else f"seconds to {target:.0%} accuracy",
        alignment="left",
    )
    for text, (_, handle, _) in zip(legend.get_texts(), ordered, strict=True):
        text.set_color(handle.get_color())


def _arrival(seconds: float) -> str:
    # Padded to the width of a number: a figure space is as wide as a digit.
    return f"{seconds:.2f}" if math.isfinite(seconds) else "\u2007\u2013\u2007\u2004\u200a"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
