"""`offbeat methods`, and `offbeat methods NAME...`"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping, Sequence

from rich.table import Table

from ..citation import citations
from ..labels import label
from ..method import Method
from ..methods import METHODS
from ..traffic import models_sent
from .commands import parsed_options
from .errors import UsageError, one_line
from .output import console, progress_bar
from .parsers import command_parser
from .spec import spec_of

FAMILIES = list(dict.fromkeys(method.family for method in METHODS.values()))

WORKERS = 4
WIDE = 124
"""Characters that the roles and the papers' titles need."""
LEGEND = f"""\
Synchronous: each step waits for every worker.
Sent: bytes that all nodes send for each gradient, over the model's bytes, with {WORKERS} workers.
Stale: the most steps that a gradient which is applied may have missed.
Survives: the others go on when a worker is lost. All of these under the default settings."""


def methods(options: Sequence[str]) -> int:
    """List the methods, what each sends and guarantees; or explain some."""
    parser = command_parser("methods", methods.__doc__)
    parser.add_argument(
        "names",
        type=str,
        nargs="*",
        default=[],
        help="such as ADPSGD or 'LocalSGD(local_steps=16)'; a table of all if not given",
    )
    parsed = parsed_options(parser, parser.parse_args, options)
    if named := [spec_of(text, Method) for text in parsed.names]:
        print("\n\n".join(map(explanation, named)))
        return 0
    out = console()
    wide = out.width >= WIDE
    sent = dict[str, float]()
    with progress_bar("simulating", len(METHODS), "methods") as bar:
        for name, method in METHODS.items():
            sent[name] = models_sent(method(), WORKERS)
            if bar is not None:
                bar.update(bar.task_ids[0], advance=1, now=name)
    out.print(methods_table(sent, wide))
    out.print(f"\n{LEGEND}")
    if not wide:
        out.print("`offbeat methods NAME` tells the roles, `offbeat cite` the papers' titles.")
    return 0


def methods_table(sent: Mapping[str, float], wide: bool) -> Table:
    """Every method of the registry, by family; roles and titles only where there is room.

    Args:
        sent: of each method, models for each gradient.
        wide: whether there is room.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    if wide:
        table.add_column("roles", no_wrap=True)
    table.add_column("synchronous" if wide else "sync", no_wrap=True)
    table.add_column("sent", justify="right")
    table.add_column("stale", justify="right")
    table.add_column("survives a loss" if wide else "survives", no_wrap=True)
    table.add_column("paper", overflow="fold")
    family = None
    for method in sorted(METHODS.values(), key=lambda m: FAMILIES.index(m.family)):
        if method.family != family:
            family = method.family
            table.add_row()
            table.add_row(f"[italic]{family}[/italic]")
        papers = [f"{c.short}, {c.title}" if wide else c.short for c in citations(method)]
        table.add_row(
            method.__name__,
            *[_roles(method())] * wide,
            "yes" if method.synchronous else "no",
            f"{sent[method.__name__]:.3g}",
            _staleness(method()),
            "yes" if method.survives_loss else "no",
            "; ".join(papers),
        )
    return table


def explanation(method: Method) -> str:
    """What a method does, under which settings, where it stands, and what is true of it."""
    made = type(method)
    try:
        sent = models_sent(method, WORKERS)
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    bound = method.staleness_bound(WORKERS)
    settings = {f.name: label(getattr(method, f.name)) for f in dataclasses.fields(method)}
    facts = {
        "roles": _roles(method),
        "synchronous": "yes" if method.synchronous else "no",
        "sent": f"{sent:.3g} models for each gradient, with {WORKERS} workers",
        "stale": "any number of steps" if bound is None else f"at most {bound} steps",
        "survives": "the loss of a worker" if method.survives_loss else "no loss of a worker",
        "settings": ", ".join(f"{name}={value}" for name, value in settings.items()) or "none",
        "file": os.path.relpath(inspect.getfile(made)),
    }
    lines = [f"{name:<12} {text}" for name, text in facts.items()]
    said = f"{made.__name__}, {method.family}\n\n{inspect.getdoc(made) or ''}".strip()
    return "\n".join([said, "", *lines])


def _staleness(method: Method) -> str:
    bound = method.staleness_bound(WORKERS)
    return "any" if bound is None else str(bound)


def _roles(method: Method) -> str:
    return ", ".join(["worker", *method.background, *["server"] * bool(method.server_count)])
