"""Cluster: a description, pure data, of workers' speeds, links and faults."""

from __future__ import annotations

from .catalogue import preset
from .compute import (
    ComputeTime,
    Constant,
    Exponential,
    Lognormal,
    Normal,
    Pareto,
    Recorded,
)
from .description import ALL_REDUCES, AllReduce, Cluster
from .faults import Fault
from .links import Access, Backbone, Outage, Site

__all__ = [
    "ALL_REDUCES",
    "Access",
    "AllReduce",
    "Backbone",
    "Cluster",
    "ComputeTime",
    "Constant",
    "Exponential",
    "Fault",
    "Lognormal",
    "Normal",
    "Outage",
    "Pareto",
    "Recorded",
    "Site",
    "preset",
]
