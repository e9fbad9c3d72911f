"""Cells: the runs of a sweep, each with its values of the swept settings."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..experiment import Experiment, to_config
from ..labels import label

NAME_LENGTH = 150
"""Characters of a cell's directory name; file systems bear 255."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep.

    Args:
        values: the text of each swept setting's value, by the setting's name.
        resolved: what the experiment's YAML form cannot say by itself, as in `Run.resolved`.
    """

    name: str
    values: Mapping[str, str]
    experiment: Experiment
    resolved: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def config(self) -> dict[str, Any]:
        """The YAML form of the experiment."""
        return to_config(self.experiment) | dict(self.resolved)


def grid(experiment: Experiment, over: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Every combination of the values of `over`, the last name's varying fastest.

    Raises:
        ValueError: in one line, for a name or a value that cannot be.
    """
    labels = {name: [label(value) for value in values] for name, values in over.items()}
    check_over(labels)
    cells: list[Cell] = []
    for chosen in itertools.product(*over.values()):
        changes = dict(zip(over, chosen, strict=True))
        values = {name: label(value) for name, value in changes.items()}
        cells.append(
            Cell(
                name=cell_name(values),
                values=values,
                experiment=replaced(experiment, changes),
            )
        )
    return check_cells(cells)


def replaced(part: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of an experiment or a part of it with some settings changed.

    Args:
        changes: by names such as "seed", "cluster.workers" or "optimizer.lr". A part and its own
            parts may both be named.

    Raises:
        ValueError: there is no such setting, or its value cannot be.
    """
    own = {name: value for name, value in changes.items() if "." not in name}
    below: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, dot, rest = name.partition(".")
        if dot:
            below.setdefault(head, {})[rest] = value
    bound = isinstance(part, functools.partial)
    if not bound and (not dataclasses.is_dataclass(part) or isinstance(part, type)):
        raise ValueError(f"{label(part)} has no setting {next(iter(changes))!r}")
    if bound:
        now: dict[str, Any] = dict(part.keywords)
    else:
        now = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        unknown = next((head for head in (*own, *below) if head not in now), None)
        if unknown is not None:
            raise ValueError(f"{type(part).__name__} has no setting {unknown!r}")
    for head, further in below.items():
        own[head] = replaced(own.get(head, now.get(head)), further)
    if bound:
        return functools.partial(part.func, *part.args, **{**now, **own})
    return dataclasses.replace(part, **own)


def check_over(labels: Mapping[str, Sequence[str]]) -> None:
    """Refuse a sweep over nothing, over no value, or over one value twice.

    Raises:
        ValueError: in one line.
    """
    if not labels:
        raise ValueError("there is nothing to sweep over: give --over FIELD=VALUE,VALUE")
    for name, values in labels.items():
        if not values:
            raise ValueError(f"--over {name} names no value")
        twice = next((value for k, value in enumerate(values) if value in values[:k]), None)
        if twice is not None:
            raise ValueError(f"--over {name} names {twice} twice")


def check_cells(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, under names that differ.

    Raises:
        ValueError: in one line, if two of them are the same experiment.
    """
    made: dict[str, Cell] = {}
    named: list[Cell] = []
    names = set[str]()
    for cell in cells:
        text = json.dumps(cell.config, sort_keys=True, default=str)
        twin = made.setdefault(text, cell)
        if twin is not cell:
            raise ValueError(f"{_told(twin)} and {_told(cell)} are the same experiment")
        name, k = cell.name, 2
        while name.lower() in names:
            name, k = f"{cell.name}-{k}", k + 1
        names.add(name.lower())
        named.append(dataclasses.replace(cell, name=name))
    return named


def cell_name(values: Mapping[str, str]) -> str:
    """A readable name for the cell's directory."""
    text = ",".join(f"{name}={value}" for name, value in values.items())
    plain = re.sub(r"[^\w.=,+-]+", "-", text)
    return re.sub(r"-+(?=,|$)", "", plain).strip("-.")[:NAME_LENGTH]


def _told(cell: Cell) -> str:
    return ", ".join(f"{name}={value}" for name, value in cell.values.items())
