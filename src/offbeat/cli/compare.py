"""`offbeat compare METHOD...`"""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ..compare import HALF_DECADES, Comparison
from ..compare import compare as compare_methods
from ..config import DEFAULTS, build, experiment_parser, parse
from ..experiment import Experiment
from ..method import Method
from ..methods import METHODS
from ..report.tables import comparison_table, footnotes, write_csv
from ..userfile import import_path, is_reference
from .commands import INTERRUPTED, checked, output_directory, parsed_options
from .errors import UsageError
from .output import console, progress_bar

OWN = ("method", "evaluate_on", "seed")
"""Fields of an experiment that a comparison decides itself."""


def compare(options: Sequence[str]) -> int:
    """Compare methods, each at its best learning rate."""
    parser = experiment_parser("offbeat compare", str(compare.__doc__), skip=OWN)
    parser.add_argument(
        "methods",
        type=str,
        nargs="*",
        help="such as AsyncSGD 'LocalSGD(local_steps=16)' my_file.py:MyMethod; or else all",
    )
    parser.add_argument(
        "--rates",
        type=str,
        default=",".join(f"{rate:g}" for rate in HALF_DECADES),
        help="the grid of learning rates to choose from",
    )
    parser.add_argument(
        "--target", type=float, default=0.93, help="test accuracy that time is counted to"
    )
    parser.add_argument("--seeds", type=str, default="0", help="such as 0,1,2; runs are averaged")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes that share the work"
    )
    parser.add_argument("--out", type=str | None, help="directory of results; runs/<time>-compare")
    parsed: Namespace = parsed_options(
        parser, functools.partial(parse, parser, defaults=DEFAULTS, ignored=OWN), options
    )
    methods = {text: method_of(text) for text in parsed.methods or METHODS}
    rates, seeds = numbers("--rates", parsed.rates, float), numbers("--seeds", parsed.seeds, int)
    if parsed.jobs < 1:
        raise UsageError(f"--jobs is {parsed.jobs}; it must be at least 1")
    first = next(iter(methods.values()))
    experiment: Experiment = parsed_options(
        parser, functools.partial(build, parser, method=first), parsed
    )
    checked(experiment)
    total = len(methods) * len(seeds) * (len(set(rates)) + 1)
    with (
        output_directory(parsed.out, "compare") as directory,
        progress_bar("compare", total, "runs") as bar,
    ):
        result = compare_methods(
            methods,
            experiment,
            rates=rates,
            target=parsed.target,
            seeds=seeds,
            jobs=min(parsed.jobs, total),
            progress=bar and (lambda label: bar.update(bar.task_ids[0], advance=1, now=label)),
        )
    return _report(result, directory)


def _report(result: Comparison, directory: Path) -> int:
    for entry in result.entries:
        for run in entry.runs:
            name = re.sub(r"[^\w.=,-]+", "-", entry.label).strip("-")
            seed = f"-seed{run.experiment.seed}" if len(result.seeds) > 1 else ""
            run.save(directory / f"{name}{seed}")
    write_csv(result, directory)
    out = console(least=110)
    out.print(comparison_table(result))
    for note in footnotes(result):
        out.print(note, markup=False, highlight=False, soft_wrap=True)
    if any(entry.runs for entry in result.entries):
        from ..report.plots import plot_comparison

        plot_comparison(result, directory)
    out.print(f"saved in {directory}", highlight=False, soft_wrap=True)
    return INTERRUPTED if result.interrupted else 0


def numbers(option: str, text: str, kind: type[float] | type[int]) -> list[Any]:
    """The numbers of a list such as `0.03,0.1`, with or without brackets."""
    try:
        return [kind(part) for part in text.strip("[]() ").split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: give numbers with commas between them") from None


def method_of(text: str) -> Method:
    """The method that `Name`, `Name(setting=value)` or `my_file.py:Name(setting=value)` means."""
    name, bracket, settings = text.partition("(")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--method", type=Method)
    dotted = parsed_options(parser, import_path, name) if is_reference(name) else name
    try:
        spec = _spec(ast.parse(f"{dotted}{bracket}{settings}", mode="eval").body)
    except (SyntaxError, ValueError):
        raise UsageError(f"cannot read {text!r}; write Name or Name(setting=value)") from None
    if isinstance(spec, str):
        spec = {"class_path": spec}
    parsed: Any = parsed_options(parser, parser.parse_object, {"method": spec})
    return parsed_options(parser, parser.instantiate, parsed).method


def _spec(node: ast.expr) -> Any:
    """jsonargparse's form of a call with keywords, of a name, or of a literal."""
    if isinstance(node, ast.Call):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("settings have names")
        settings = {str(keyword.arg): _spec(keyword.value) for keyword in node.keywords}
        return {"class_path": _spec(node.func), "init_args": settings}
    if isinstance(node, ast.Name | ast.Attribute):
        return ast.unparse(node)
    return ast.literal_eval(node)
