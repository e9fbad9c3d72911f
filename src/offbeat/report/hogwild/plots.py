"""The pictures as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..plots import STYLE
from .figures import COLOURS, Chart, Map

DASHES = ("-", "--", ":")
LEAST, MOST = 1e-4, 1.0
"""Fractions at the ends of the colours."""


def draw_chart(chart: Chart, directory: Path) -> Path:
    """Its lines, with names below."""
    with mpl.rc_context(STYLE):
        figure = _figure(7.2, 4.6 + 0.2 * len(chart.lines))
        axes = figure.subplots()
        for k, line in enumerate(chart.lines):
            style: Any = {"color": COLOURS[k % len(COLOURS)], "ls": DASHES[k // len(COLOURS) % 3]}
            axes.plot(line.x, line.y, marker="o", ms=3.5, lw=1.6, label=line.name, **style)
        axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
        axes.set_xscale("log" if chart.log_x else "linear")
        axes.set_yscale("log" if chart.log_y and _positive(chart) else "linear")
        axes.grid(color="#e6e6e6", lw=0.6)
        figure.legend(loc="outside lower left", frameon=False, fontsize=8.5)
        return _saved(figure, directory / f"{chart.name}.png")


def draw_maps(maps: Sequence[Map], directory: Path) -> Path:
    """Squares side by side, with one scale of colours."""
    with mpl.rc_context(STYLE):
        figure = _figure(max(5.0, 3.6 * len(maps)), 4.4)
        every: Any = figure.subplots(1, len(maps), squeeze=False)[0]
        colours = mpl.colormaps["magma_r"].with_extremes(bad="#dfe3e8")
        scale = LogNorm(LEAST, MOST)
        drawn: Any = None
        for axes, shown in zip(every, maps, strict=True):
            rates = np.maximum(shown.rates, LEAST)
            drawn = axes.imshow(rates, cmap=colours, norm=scale, interpolation="nearest")
            axes.set_title(shown.title.replace(", ", ",\n", 1), fontsize=8.5)
            axes.set(xticks=[], yticks=[])
        figure.colorbar(drawn, ax=every, label="of a coordinate's updates, collided", shrink=0.8)
        return _saved(figure, directory / "collisions.png")


def _positive(chart: Chart) -> bool:
    return all(y > 0 for line in chart.lines for y in line.y)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path
