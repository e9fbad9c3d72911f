"""`offbeat problems`"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import torch
from rich.table import Table

from ..problems import PROBLEMS, Problem
from .errors import UsageError
from .output import console


def problems(options: Sequence[str]) -> int:
    """List the problems: data, networks, and whether the files are here."""
    if options and options != ["--help"]:
        raise UsageError(f"`offbeat problems` takes no options, not {' '.join(options)}")
    console().print(problems_table())
    return 0


def problems_table() -> Table:
    """Every problem of the registry, with its default settings."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("problem", "samples", "inputs", "classes"):
        table.add_column(column, no_wrap=True)
    table.add_column("network", no_wrap=True)
    table.add_column("parameters", no_wrap=True, justify="right")
    table.add_column("data from")
    table.add_column("here")
    for name, made in PROBLEMS.items():
        problem, about = made(), made.summary
        assert about is not None
        rows = [(network, f"{size:,}") for network, size in networks(problem)]
        table.add_row(
            name,
            about.samples,
            about.inputs,
            about.classes,
            "\n".join(network for network, _ in rows),
            "\n".join(size for _, size in rows),
            about.source,
            "yes" if problem.available() else "no",
        )
    return table


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
