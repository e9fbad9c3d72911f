"""`offbeat methods`"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..citation import citations
from ..method import Method
from ..methods import METHODS
from ..traffic import models_sent
from .output import console
from .parsers import take_no_options

FAMILIES = list(dict.fromkeys(method.family for method in METHODS.values()))

WORKERS = 4
WIDE = 124
"""Characters that the roles and the papers' titles need."""
LEGEND = f"""\
Sent: bytes that all nodes send for each gradient, in sizes of the model, with {WORKERS} workers.
Stale: the most steps that a gradient which is applied may have missed.
Survives: the others go on when a worker is lost. All of these under the default settings."""


def methods(options: Sequence[str]) -> int:
    """List the methods: what each sends and guarantees, roles and papers."""
    take_no_options("methods", methods.__doc__, options)
    out = console()
    wide = out.width >= WIDE
    out.print(methods_table(wide))
    out.print(f"\n{LEGEND}")
    if not wide:
        out.print("`offbeat cite` prints the papers' titles.")
    return 0


def methods_table(wide: bool) -> Table:
    """Every method of the registry, by family; roles and titles only where there is room."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    if wide:
        table.add_column("roles", no_wrap=True)
        table.add_column("synchronous")
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
            *[_roles(method), "yes" if method.synchronous else "no"] * wide,
            f"{models_sent(method(), WORKERS):.3g}",
            _staleness(method),
            "yes" if method.survives_loss else "no",
            "; ".join(papers),
        )
    return table


def _staleness(method: type[Method]) -> str:
    bound = method().staleness_bound(WORKERS)
    return "any" if bound is None else str(bound)


def _roles(method: type[Method]) -> str:
    return ", ".join(["worker", *method.background, *["server"] * bool(method().server_count)])
