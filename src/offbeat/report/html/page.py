"""The page: sections put together, with their scripts and styles, in one file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from ...files import whole
from ...labels import label
from ...runs import Run, versions
from .names import problem_key
from .network import network_data
from .progress import fault_list, progress_data
from .settings import repeat_command, settings_text
from .sources import Named, named_runs
from .staleness import staleness_data
from .styles import Style, styles
from .summary import COLUMNS, MODES, TITLES, second_word, summary_cells
from .timeline import EVENTS, timeline_data

SCRIPTS = ("core.js", "progress.js", "timeline.js", "detail.js", "main.js")


def write_report(
    runs: Mapping[str, Run | Path | str] | Iterable[Run | Path | str], path: Path | str
) -> Path:
    """Write one HTML file that shows these runs, and needs no network and no other file.

    Args:
        runs: runs, run directories, and directories of those; with names of their own in a mapping.
        path: of the file. It takes this name only once it is whole.

    Raises:
        ValueError: in one line, if there is no run, or one cannot be read.
        OSError: the file cannot be written.
    """
    target = Path(path)
    page = render(named_runs(runs))
    with whole(target) as part:
        part.write_text(page, encoding="utf-8")
    return target


def render(named: Sequence[Named]) -> str:
    """The page as HTML."""
    groups = _by_problem(named)
    most = EVENTS // len(named)
    environment = Environment(
        loader=PackageLoader("offbeat.report.html", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["breakable"] = breakable
    data = {"groups": [_group_data(entries, most) for entries in groups]}
    return environment.get_template("page.html.jinja").render(
        title=_title(named, len(groups)),
        subtitle=_subtitle(named),
        columns=COLUMNS,
        titles=TITLES,
        groups=[_group_view(entries) for entries in groups],
        css=_asset("report.css"),
        scripts=[_asset(name) for name in SCRIPTS],
        plotly=Markup(get_plotlyjs()),
        data=_json_in_html(data),
    )


def breakable(name: str) -> Markup:
    """The name as HTML that may break inside a class name: `Async|SGD`."""
    return Markup(re.sub(r"(?<=[a-z])(?=[A-Z])", "<wbr>", str(escape(name))))


def _by_problem(named: Sequence[Named]) -> list[list[Named]]:
    groups: dict[str, list[Named]] = {}
    for entry in named:
        groups.setdefault(problem_key(entry.run), []).append(entry)
    return list(groups.values())


def _group_data(entries: Sequence[Named], most: int) -> dict[str, Any]:
    """What the scripts draw."""
    return {
        "second_word": second_word([entry.run for entry in entries]),
        "runs": [
            {
                "name": entry.name,
                "light": style.light,
                "dark": style.dark,
                "dash": style.dash,
                "virtual": entry.run.mode == "simulated",
                "progress": progress_data(entry.run),
                "staleness": staleness_data(entry.run),
                "timeline": timeline_data(entry.run, most),
                "network": network_data(entry.run),
            }
            for entry, style in _styled(entries)
        ],
    }


def _group_view(entries: Sequence[Named]) -> dict[str, Any]:
    """What the template writes."""
    experiment = entries[0].run.experiment
    return {
        "title": f"{type(experiment.problem).__name__}, {experiment.evaluate_on} part",
        "runs": [
            {
                "name": entry.name,
                "style": style,
                "cells": summary_cells(entry.run),
                "mode": MODES.get(entry.run.mode, entry.run.mode),
                "real": entry.run.mode != "simulated",
                "error": entry.run.error,
                "notes": entry.run.notes,
                "faults": [fault["text"] for fault in fault_list(entry.run)],
                "settings": settings_text(entry),
                "command": repeat_command(entry),
                "saved": entry.directory is not None,
            }
            for entry, style in _styled(entries)
        ],
    }


def _styled(entries: Sequence[Named]) -> list[tuple[Named, Style]]:
    return list(zip(entries, styles([entry.run for entry in entries]), strict=True))


def _title(named: Sequence[Named], problems: int) -> str:
    first = named[0].run.experiment
    on = type(first.problem).__name__ if problems == 1 else f"{problems} problems"
    if len(named) == 1:
        return f"{label(first.method)} on {on}"
    methods = {type(entry.run.experiment.method).__name__ for entry in named}
    if len(methods) == len(named):
        return f"{len(named)} methods on {on}"
    if len(methods) == 1:
        return f"{len(named)} runs of {methods.pop()} on {on}"
    return f"{len(named)} runs of {len(methods)} methods on {on}"


def _subtitle(named: Sequence[Named]) -> str:
    counts = sorted({entry.run.experiment.cluster.workers for entry in named})
    workers = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    modes = sorted({MODES.get(entry.run.mode, entry.run.mode) for entry in named})
    seeds = sorted({entry.run.experiment.seed for entry in named})
    parts = [
        f"{workers} worker{'s' * (counts[-1] != 1)}",
        "; ".join(modes),
        f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds[:8]))}",
        f"offbeat {versions()['offbeat']}",
    ]
    return " · ".join(parts)


def _asset(name: str) -> Markup:
    return Markup(files("offbeat.report.html").joinpath("assets", name).read_text("utf-8"))


def _json_in_html(data: Any) -> Markup:
    """JSON that cannot end the script element it is in, whatever names hold."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
