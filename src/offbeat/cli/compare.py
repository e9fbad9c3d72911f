"""`offbeat compare METHOD...` and `offbeat compare DIR...`"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from ..compare import HALF_DECADES, Comparison, compare_runs
from ..compare import compare as compare_methods
from ..config import DEFAULTS, Config, build, experiment_parser, parse, resolved
from ..experiment import Experiment
from ..labels import file_name
from ..method import Method
from ..methods import METHODS
from ..parallel import WorkerKilled
from ..report.tables import comparison_tables, footnotes, write_csv
from ..userfile import is_reference
from .commands import checked, output_directory, parsed_options
from .errors import UsageError, one_line
from .main import INTERRUPTED
from .output import console, progress_bar, write_line
from .parsers import HelpFormatter
from .spec import spec_of

OWN = ("method", "evaluate_on", "seed")
"""Fields of an experiment that a comparison decides itself."""

OF_SAVED = ("target", "at", "varying", "out")
"""Options that have a meaning for saved runs."""

OF_METHODS = ("rates", "tune", "trials", "seeds", "jobs")
"""Further options, besides those of an experiment, that have one for methods."""


def compare(options: Sequence[str]) -> int:
    """Compare methods, each at its best learning rate; or saved runs."""
    parser = _parser()
    parsed: Namespace = parsed_options(
        parser, functools.partial(parse, parser, defaults=DEFAULTS, ignored=OWN), options
    )
    directories = [text for text in parsed.methods if names_directory(text)]
    if not directories:
        return _compare_methods(parser, parsed)
    others = [text for text in parsed.methods if text not in directories]
    if others:
        raise UsageError(
            f"{others[0]} is a method and {directories[0]} a directory: compare methods, or "
            "saved runs"
        )
    allowed = [f"--{name}" for name in OF_SAVED]
    for option in options:
        name = option.partition("=")[0]
        if name.startswith("--") and name not in allowed:
            raise UsageError(
                f"{name} means nothing for saved runs, which are made already; there are "
                f"{', '.join(allowed)}"
            )
    return _compare_saved(directories, parsed)


def _parser() -> ArgumentParser:
    parser = experiment_parser("offbeat compare", str(compare.__doc__), HelpFormatter, skip=OWN)
    parser.add_argument(
        "methods",
        type=str,
        nargs="*",
        default=[],
        help="such as AsyncSGD 'LocalSGD(local_steps=16)' my_file.py:MyMethod; all methods if "
        "none is given; or directories of saved runs",
    )
    parser.add_argument(
        "--rates",
        type=str,
        default=",".join(f"{rate:g}" for rate in HALF_DECADES),
        help="the grid of learning rates to choose from; for optuna the ends of its range",
    )
    parser.add_argument(
        "--tune",
        type=Literal["grid", "optuna", "none"],
        default="grid",
        help="how each method's learning rate is chosen; none takes the experiment's own",
    )
    parser.add_argument(
        "--trials", type=int, default=20, help="rates that optuna tries for each method"
    )
    parser.add_argument(
        "--target", type=float, default=0.93, help="test accuracy that time is counted to"
    )
    parser.add_argument(
        "--at",
        type=float | None,
        help="seconds at which runs are compared too; default: when the run that ends first ends",
    )
    parser.add_argument("--seeds", type=str, default="0", help="such as 0,1,2; runs are averaged")
    parser.add_argument(
        "--varying",
        type=str,
        action="append",
        default=[],
        help="of saved runs: a setting that may differ, such as cluster.workers; repeatable",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes that share the work"
    )
    parser.add_argument(
        "--out",
        type=str | None,
        help="directory of results; runs/<time>-compare for methods, nothing for saved runs",
    )
    return parser


def names_directory(text: str) -> bool:
    """Whether an argument means a directory of saved runs rather than a method."""
    if text in METHODS or "(" in text or is_reference(text):
        return False
    return Path(text).exists() or "/" in text


def _compare_methods(parser: ArgumentParser, parsed: Namespace) -> int:
    if parsed.varying:
        raise UsageError("--varying is for saved runs; methods are compared in one experiment")
    methods = {text: spec_of(text, Method) for text in parsed.methods or METHODS}
    rates, seeds = numbers("--rates", parsed.rates, float), numbers("--seeds", parsed.seeds, int)
    if parsed.jobs < 1:
        raise UsageError(f"--jobs is {parsed.jobs}; it must be at least 1")
    first = next(iter(methods.values()))
    experiment: Experiment = parsed_options(
        parser, functools.partial(build, parser, method=first), parsed
    )
    checked(experiment)
    searched = {"grid": len(set(rates)), "optuna": parsed.trials, "none": 0}[parsed.tune]
    total = len(methods) * len(seeds) * (searched + 1)
    try:
        with (
            output_directory(parsed.out, "compare") as directory,
            progress_bar("compare", total, "runs") as bar,
        ):
            result = compare_methods(
                methods,
                experiment,
                rates=rates,
                tune=parsed.tune,
                trials=parsed.trials,
                target=parsed.target,
                seeds=seeds,
                seconds=parsed.at,
                jobs=min(parsed.jobs, total),
                progress=bar and (lambda label: bar.update(bar.task_ids[0], advance=1, now=label)),
            )
    except WorkerKilled as error:
        write_line(one_line(error))
        return 1
    page = _save(result, directory, resolved(parsed))
    _print(result)
    print(f"saved in {directory}")
    if page is not None:
        print(f"report     {page}")
    return INTERRUPTED if result.interrupted else 0


def _compare_saved(directories: Sequence[str], parsed: Namespace) -> int:
    try:
        result = compare_runs(
            directories, target=parsed.target, seconds=parsed.at, varying=parsed.varying
        )
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    _print(result)
    if parsed.out is not None:
        with output_directory(parsed.out, "compare") as directory:
            write_csv(result, directory)
        print(f"saved in {directory}")
    return 0


def _save(result: Comparison, directory: Path, made_by: Config) -> Path | None:
    """Save everything; the path of the report, which there is if there are runs."""
    saved: dict[str, Path] = {}
    for entry in result.entries:
        for run in entry.runs:
            seed = f" seed {run.experiment.seed}" if len(result.seeds) > 1 else ""
            label = f"{entry.label}{seed}"
            saved[label] = directory / file_name(label)
            run.resolved |= made_by
            run.save(saved[label])
    write_csv(result, directory)
    if not saved:
        return None
    # Imported here: other commands do without matplotlib and Plotly.
    from ..report.html import write_report
    from ..report.plots import plot_comparison

    plot_comparison(result, directory)
    page = directory / "report.html"
    write_report(saved, page)
    return page


def _print(result: Comparison) -> None:
    out = console()
    for k, table in enumerate(comparison_tables(result, out.width)):
        if k > 0:
            out.print()
        out.print(table)
    for note in footnotes(result):
        out.print(note, markup=False, highlight=False, soft_wrap=True)


def numbers(option: str, text: str, kind: type[float] | type[int]) -> list[Any]:
    """The numbers of a list such as `0.03,0.1`, with or without brackets."""
    try:
        return [kind(part) for part in text.strip("[]() ").split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: give numbers with commas between them") from None
