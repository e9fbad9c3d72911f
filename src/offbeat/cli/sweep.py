"""`offbeat sweep --over FIELD=VALUE,VALUE`"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from ..config import build, experiment_parser, parse, resolved
from ..experiment import Experiment
from ..files import whole
from ..labels import label
from ..parallel import WorkerKilled
from ..report.columns import Column, fitted
from ..sweep import Cell, Row, pivot, run_cells, stable_rates
from ..sweep.cells import cell_name, check_cells, check_over
from ..sweep.execute import MANIFEST, is_done
from ..sweep.pivot import markdown, measure_of, text_of
from ..sweep.results import SEED
from ..sweep.stable import MARGIN, chance_of
from .commands import checked, output_directory, parsed_options
from .errors import UsageError, nearest, one_line
from .main import INTERRUPTED
from .output import console, progress_bar, write_line
from .parsers import HelpFormatter

Table = tuple[str, list[Column], list[Column]]
"""A title, the columns that say what the rows are, and those that say what came of them."""

CLOSING = {"(": ")", "[": "]", "{": "}"}


def sweep(options: Sequence[str]) -> int:
    """Simulate an experiment at every combination of some of its settings."""
    if "--help" in options or "-h" in options:
        parser = experiment_parser("offbeat sweep", str(sweep.__doc__), HelpFormatter)
        _add_own(parser)
        parser.parse_args(["--help"])
    own, rest = _own(options)
    over = _over(own.over)
    cells = _cells(over, rest)
    asked = functools.partial(_tables, cells, own)
    # Whatever is wrong with the tables is told before anything runs.
    _refusing(asked, [Row(cell=cell.name, values=cell.values) for cell in cells])
    try:
        with (
            _directory(own.out) as directory,
            progress_bar("sweep", len(cells), "cells") as bar,
        ):
            rows = run_cells(
                cells,
                directory,
                jobs=own.jobs,
                light=own.light,
                progress=bar and (lambda name: bar.update(bar.task_ids[0], advance=1, now=name)),
            )
    except WorkerKilled as error:
        write_line(one_line(error))
        return 1
    except KeyboardInterrupt:
        where = Path(own.out)
        done = sum(is_done(where, cell) for cell in cells)
        write_line(
            f"interrupted: {done} of {len(cells)} cells are done; the same command does the rest"
        )
        return INTERRUPTED
    _print(asked(rows), rows, directory)
    return 0


def _add_own(parser: Any) -> None:
    parser.add_argument(
        "--over",
        type=str,
        action="append",
        default=[],
        help="FIELD=VALUE,VALUE such as cluster.workers=1,2,5 or "
        "'method=AsyncSGD,LocalSGD(local_steps=4)'; repeatable",
    )
    parser.add_argument("--out", type=str, help="directory of results; resumed if it has some")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes that share the work"
    )
    parser.add_argument("--light", action="store_true", help="save no traces")
    parser.add_argument("--rows", type=str, help="swept field whose values are the table's rows")
    parser.add_argument("--columns", type=str, help="swept field whose values are its columns")
    parser.add_argument(
        "--stable", type=str, help="report the largest stable value of this swept field"
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=MARGIN,
        help="how far above chance every accuracy must be for a rate to count as stable",
    )


def _own(options: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The sweep's own options, and those of the experiment."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_own(parser)
    try:
        own, rest = parser.parse_known_args(list(options))
    except argparse.ArgumentError as error:
        raise UsageError(f"{error.argument_name}: {error.message}") from error
    if own.out is None and not own.over:
        raise UsageError(
            "a sweep needs settings to go through and a directory to resume from: give "
            "--over FIELD=VALUES and --out DIR"
        )
    if own.out is None:
        raise UsageError("a sweep needs a directory to resume from: give --out DIR")
    if own.jobs < 1:
        raise UsageError(f"--jobs is {own.jobs}; it must be at least 1")
    if not 0 <= own.margin < 1:
        raise UsageError(f"--margin is {own.margin:g}; it must be at least 0 and below 1")
    return own, rest


def _over(given: Sequence[str]) -> dict[str, list[str]]:
    """The texts of each field's values."""
    over: dict[str, list[str]] = {}
    known = [f.name for f in dataclasses.fields(Experiment)]
    for text in given:
        name, equals, listed = text.partition("=")
        name = name.strip().removeprefix("--")
        if not equals:
            raise UsageError(f"--over {text}: write FIELD=VALUE,VALUE")
        head = name.partition(".")[0]
        if head not in known:
            hint = nearest(head, known, f"; there are {', '.join(known)}")
            raise UsageError(f"--over {name}: an experiment has no field {head}{hint}")
        if name in over:
            raise UsageError(f"--over {name} is given twice; list all its values in one")
        over[name] = values_of(text, listed)
    _refusing(check_over, over)
    return over


def values_of(option: str, listed: str) -> list[str]:
    """The values in `1,2`, `[1, 2]` or `A,B(c=1,d=[2,3])`: commas inside brackets do not split.

    Raises:
        UsageError: a bracket is not closed, or a value is empty.
    """
    if not listed.strip():
        return []
    parts = _split(option, listed)
    if len(parts) == 1 and parts[0].startswith("["):
        try:
            parsed = yaml.safe_load(parts[0])
        except yaml.YAMLError:
            raise UsageError(f"--over {option}: {parts[0]} is no YAML list") from None
        return [value if isinstance(value, str) else label(value) for value in parsed]
    if "" in parts:
        raise UsageError(f"--over {option} has an empty value between its commas")
    return parts


def _split(option: str, listed: str) -> list[str]:
    parts, open_brackets, quote = [""], list[str](), ""
    for character in listed:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in CLOSING:
            open_brackets.append(CLOSING[character])
        elif open_brackets and character == open_brackets[-1]:
            open_brackets.pop()
        elif character == "," and not open_brackets:
            parts.append("")
            continue
        parts[-1] += character
    if open_brackets or quote:
        raise UsageError(f"--over {option}: a {(open_brackets or [quote])[-1]} is missing")
    return [part.strip() for part in parts]


def _cells(over: Mapping[str, Sequence[str]], rest: Sequence[str]) -> list[Cell]:
    """An experiment for each combination, of the options and the values in it."""
    parser = experiment_parser("offbeat sweep")
    cells: list[Cell] = []
    for chosen in itertools.product(*over.values()):
        values = dict(zip(over, chosen, strict=True))
        # A class comes before its own settings.
        given = list(rest)
        for name in sorted(values, key=lambda name: name.count(".")):
            own = (k for k, option in enumerate(given) if option.startswith(f"--{name}."))
            given.insert(next(own, len(given)), f"--{name}={values[name]}")
        parsed: Namespace = parsed_options(parser, functools.partial(parse, parser), given)
        experiment: Experiment = parsed_options(parser, functools.partial(build, parser), parsed)
        cells.append(
            Cell(
                name=cell_name(values),
                values=values,
                experiment=experiment,
                resolved=resolved(parsed),
            )
        )
    named_cells = _refusing(check_cells, cells)
    unlike = {repr(dataclasses.replace(c.experiment, seed=0)): c for c in named_cells}
    for cell in unlike.values():
        checked(cell.experiment)
    return named_cells


@contextmanager
def _directory(out: str) -> Generator[Path]:
    """A new directory, or one that holds a sweep already."""
    if not (Path(out) / MANIFEST).is_file():
        with output_directory(out, "sweep") as directory:
            yield directory
        return
    try:
        yield Path(out)
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def _tables(cells: Sequence[Cell], own: argparse.Namespace, rows: Sequence[Row]) -> list[Table]:
    experiment, measure = cells[0].experiment, measure_of(rows)
    seeds = len(dict.fromkeys(cell.values.get(SEED) for cell in cells))
    title = f"{experiment.evaluate_on} {measure}{', %' if measure == 'accuracy' else ''}"
    if seeds > 1 and SEED not in (own.rows, own.columns):
        title += f": mean ± sample standard deviation over {seeds} seeds"
    tables: list[Table] = []
    for found in pivot(rows, own.rows, own.columns):
        fixed = ", ".join(f"{name}={value}" for name, value in found.fixed.items())
        head = [Column(title=found.rows, cells=found.row_values)]
        columns = [
            Column(
                title=f"{found.columns}\n{value}" if found.columns and k == 0 else value or measure,
                cells=[
                    text_of(found.groups.get((row, value)), measure) for row in found.row_values
                ],
            )
            for k, value in enumerate(found.column_values)
        ]
        tables.append((f"{title}; {fixed}" if fixed else title, head, columns))
    if own.stable is not None:
        chance = chance_of(experiment)
        stable = stable_rates(rows, own.stable, chance, own.margin)
        tables.append(
            (
                f"largest stable {own.stable}: no run failed, and each has an accuracy more than "
                f"{own.margin:.1%} above chance, which is {chance:.1%}",
                [
                    Column(title=name, cells=[where[name] for where, _ in stable])
                    for name in stable[0][0]
                ],
                [Column(title=own.stable, cells=[rate or "none" for _, rate in stable])],
            )
        )
    return tables


def _print(tables: Sequence[Table], rows: Sequence[Row], directory: Path) -> None:
    out = console()
    parts: list[str] = []
    for title, head, columns in tables:
        out.print(title, markup=False, highlight=False, soft_wrap=True)
        for table in fitted(head, columns, out.width):
            out.print(table)
        out.print()
        titles = [column.title.rpartition("\n") for column in (*head, *columns)]
        # A pivot's first column names both of its settings.
        over = titles[len(head)][0]
        heads = [titles[0][2] + (f" \\ {over}" if over else ""), *(t[2] for t in titles[1:])]
        cells = list(zip(*(column.cells for column in (*head, *columns)), strict=True))
        parts.append(f"{title}\n\n{markdown(heads, cells)}")
    failed = [row for row in rows if row.error]
    if failed:
        first = f"{failed[0].cell}: {failed[0].error}"
        line = f"{len(failed)} of {len(rows)} cells failed; sweep.csv says why. The first: {first}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)
        parts.append(f"{line}\n")
    with whole(directory / "sweep.md") as part:
        part.write_text("\n".join(parts))
    print(f"saved in {directory}")


def _refusing(check: Any, given: Any) -> Any:
    try:
        return check(given)
    except ValueError as error:
        raise UsageError(one_line(error)) from error
