"""The page: tables and pictures of runs of `offbeat hogwild` in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ...files import whole
from ...hogwild import Outcome
from ...runs import versions
from . import published
from .figures import COLOURS, Chart, Map, charts, maps
from .plots import LEAST, MOST, draw_chart, draw_maps
from .table import about, by_problem, columns, notes, rows

INK, GRID = "#808891", "rgba(128, 136, 145, 0.25)"
"""Readable on a light page and on a dark one."""
DASHES = ("solid", "dash", "dot")


def write_pages(outcomes: Sequence[Outcome], directory: Path, command: str) -> list[Path]:
    """report.html and a PNG for each picture, in a directory that is there."""
    every = rows(outcomes)
    written = [write_page(outcomes, directory / "report.html", command)]
    written += [draw_chart(chart, directory) for chart in charts(every)]
    if shown := maps(every):
        written.append(draw_maps(shown, directory))
    return written


def write_page(outcomes: Sequence[Outcome], path: Path, command: str | None = None) -> Path:
    """Write one HTML file that shows these outcomes, and needs no network and no other file.

    Args:
        outcomes: at least one.
        path: of the file. It takes this name only once it is whole.
        command: what repeats them.

    Raises:
        OSError: the file cannot be written.
    """
    every = rows(outcomes)
    environment = Environment(
        loader=PackageLoader("offbeat.report.hogwild", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    groups = list[dict[str, Any]]()
    for problem, group in by_problem(outcomes).items():
        titles, lines = columns(group)
        groups.append(
            {
                "problem": problem,
                "about": about(group[0].outcome),
                "titles": titles,
                "lines": lines,
                "notes": notes(group),
            }
        )
    text = environment.get_template("page.html.jinja").render(
        version=versions()["offbeat"],
        groups=groups,
        charts=[(chart, _figure(_chart(chart))) for chart in charts(every)],
        maps=[(shown.title, _figure(_map(shown))) for shown in maps(every)],
        published=published,
        command=command,
        css=Markup(
            files("offbeat.report.html").joinpath("assets", "report.css").read_text("utf-8")
        ),
        plotly=Markup(get_plotlyjs()),
    )
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def _chart(chart: Chart) -> go.Figure:
    figure = go.Figure()
    for k, line in enumerate(chart.lines):
        figure.add_scatter(
            x=line.x,
            y=line.y,
            name=line.name,
            mode="lines+markers",
            line={
                "color": COLOURS[k % len(COLOURS)],
                "dash": DASHES[k // len(COLOURS) % len(DASHES)],
                "width": 2,
            },
            marker={"size": 5},
        )
    positive = all(y > 0 for line in chart.lines for y in line.y)
    figure.update_xaxes(title=chart.x, type="log" if chart.log_x else "linear")
    figure.update_yaxes(title=chart.y, type="log" if chart.log_y and positive else "linear")
    rows_below = len(chart.lines)
    figure.update_layout(
        height=360 + 20 * rows_below,
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
    )
    return figure


def _map(shown: Map) -> go.Figure:
    with np.errstate(divide="ignore"):
        logs = np.log10(np.maximum(shown.rates, LEAST))
    ticks = np.arange(np.log10(LEAST), np.log10(MOST) + 1)
    figure = go.Figure(
        go.Heatmap(
            z=logs,
            customdata=100 * shown.rates,
            zmin=ticks[0],
            zmax=ticks[-1],
            colorscale="Magma_r",
            hovertemplate="%{customdata:.3f} % collided<extra></extra>",
            colorbar={
                "tickvals": ticks,
                "ticktext": [f"{100 * 10**tick:g} %" for tick in ticks],
                "thickness": 12,
            },
        )
    )
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, scaleanchor="x", autorange="reversed", constrain="domain")
    figure.update_layout(height=380)
    return figure


def _figure(figure: go.Figure) -> Markup:
    figure.update_xaxes(gridcolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        margin={"l": 58, "r": 14, "t": 10, "b": 44},
    )
    config = {"displaylogo": False, "responsive": True}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=config))
