"""Comparing methods like with like: equal samples, equal time, the same care over every rate."""

from .methods import compare
from .results import Comparison, Entry, Trial
from .saved import compare_runs
from .search import HALF_DECADES, best_rate

__all__ = [
    "HALF_DECADES",
    "Comparison",
    "Entry",
    "Trial",
    "best_rate",
    "compare",
    "compare_runs",
]
