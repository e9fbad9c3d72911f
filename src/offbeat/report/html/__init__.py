"""The report: one HTML file of one run or several, which needs nothing else."""

from .page import write_report
from .sources import find_runs

__all__ = ["find_runs", "write_report"]
