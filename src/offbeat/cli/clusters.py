"""`offbeat clusters`"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..cluster.catalogue import about, preset_names
from .output import console
from .parsers import take_no_options


def clusters(options: Sequence[str]) -> int:
    """List the clusters that have a name, for `--cluster NAME`."""
    take_no_options("clusters", clusters.__doc__, options)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("cluster", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for name in preset_names():
        table.add_row(name, about(name))
    console().print(table)
    return 0
