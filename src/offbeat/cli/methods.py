"""`offbeat methods`"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..citation import citations
from ..methods import METHODS
from .errors import UsageError
from .output import console

FAMILIES = list(dict.fromkeys(method.family for method in METHODS.values()))


def methods(options: Sequence[str]) -> int:
    """List the methods: their papers, roles, and what they bear."""
    if options and options not in (["--help"], ["-h"]):
        raise UsageError(f"`offbeat methods` takes no options, not {' '.join(options)}")
    console().print(methods_table())
    return 0


def methods_table() -> Table:
    """Every method of the registry, by family."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("method", "roles", "synchronous", "survives a loss"):
        table.add_column(column, no_wrap=True)
    table.add_column("paper", overflow="fold")
    family = None
    for method in sorted(METHODS.values(), key=lambda m: FAMILIES.index(m.family)):
        if method.family != family:
            family = method.family
            table.add_row()
            table.add_row(f"[italic]{family}[/italic]")
        roles = ["worker", *method.background, *["server"] * bool(method().server_count)]
        table.add_row(
            method.__name__,
            ", ".join(roles),
            "yes" if method.synchronous else "no",
            "yes" if method.survives_loss else "no",
            "; ".join(f"{c.short}, {c.title}" for c in citations(method)),
        )
    return table
