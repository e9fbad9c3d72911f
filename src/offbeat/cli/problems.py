"""`offbeat problems`"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import torch
from rich.table import Table

from ..problems import PROBLEMS, Problem
from ..report.columns import Column, fitted
from .output import console
from .parsers import take_no_options


def problems(options: Sequence[str]) -> int:
    """List the problems: data, networks, and whether the files are here."""
    take_no_options("problems", problems.__doc__, options)
    out = console()
    for k, table in enumerate(problems_tables(out.width)):
        if k > 0:
            out.print()
        out.print(table)
    return 0


def problems_tables(width: int) -> list[Table]:
    """Every problem of the registry with its default settings, in tables that fit the width."""
    titles = ("problem", "samples", "inputs", "classes", "here", "data from")
    titles += ("network", "parameters")
    lines: list[tuple[str, ...]] = []
    for name, made in PROBLEMS.items():
        problem, about = made(), made.summary
        assert about is not None
        rows = [(network, f"{size:,}") for network, size in networks(problem)]
        lines.append(
            (
                name,
                about.samples,
                about.inputs,
                about.classes,
                "yes" if problem.available() else "no",
                about.source,
                "\n".join(network for network, _ in rows),
                "\n".join(size for _, size in rows),
            )
        )
    head, *columns = (
        Column(title=title, cells=cells, justify="right" if title == "parameters" else "left")
        for title, cells in zip(titles, zip(*lines, strict=True), strict=True)
    )
    return fitted([head], columns, width)


def networks(problem: Any) -> list[tuple[str, int]]:
    """Names of the networks that `problem` can have, the default one first, and their parameters.

    Where there is no choice the one network has the name "-".
    """
    default = getattr(problem, "network", None)
    if default is None:
        return [("-", parameters(problem))]
    named: tuple[str, ...] = get_args(get_type_hints(type(problem))["network"])
    ordered = [default, *(name for name in named if name != default)]
    return [(name, parameters(dataclasses.replace(problem, network=name))) for name in ordered]


def parameters(problem: Problem) -> int:
    """How many parameters the model of `problem` has."""
    with torch.random.fork_rng(devices=[]):
        return sum(parameter.numel() for parameter in problem.model().parameters())
