"""Sweeps: an experiment at every combination of some of its settings."""

from .cells import Cell, grid, replaced
from .execute import run_cells, sweep
from .pivot import Pivot, pivot
from .results import Group, Row
from .stable import stable_rates

__all__ = [
    "Cell",
    "Group",
    "Pivot",
    "Row",
    "grid",
    "pivot",
    "replaced",
    "run_cells",
    "stable_rates",
    "sweep",
]
