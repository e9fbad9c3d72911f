"""`offbeat methods`"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..citation import citations
from ..method import Method
from ..methods import METHODS
from .output import console
from .parsers import take_no_options

FAMILIES = list(dict.fromkeys(method.family for method in METHODS.values()))

WIDE = 110
"""Characters that the roles and the papers' titles need."""


def methods(options: Sequence[str]) -> int:
    """List the methods: papers, roles, and which survive a loss."""
    take_no_options("methods", methods.__doc__, options)
    out = console()
    wide = out.width >= WIDE
    out.print(methods_table(wide))
    if not wide:
        out.print("\n`offbeat cite` prints the papers' titles.")
    return 0


def methods_table(wide: bool) -> Table:
    """Every method of the registry, by family; roles and titles only where there is room."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in ("method", *["roles"] * wide, "synchronous", "survives a loss"):
        table.add_column(column, no_wrap=True)
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
            *[_roles(method)] * wide,
            "yes" if method.synchronous else "no",
            "yes" if method.survives_loss else "no",
            "; ".join(papers),
        )
    return table


def _roles(method: type[Method]) -> str:
    return ", ".join(["worker", *method.background, *["server"] * bool(method().server_count)])
