"""offbeat: asynchronous, decentralized and local-update SGD for PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import cluster, compare, loggers, methods, problems, sweep, topology
    from . import topology as topologies
    from .api import replay, run, simulate
    from .batch_norm import reestimate_statistics
    from .cluster import Cluster, Fault
    from .experiment import Budget, Experiment
    from .messages import message
    from .method import Method, ServerMethod
    from .node import Node
    from .runs import load_run
    from .runtime.loop import distribute
    from .suspensions import PeerLost

__version__ = "0.1.0"

# Imported when first used: torch takes seconds, and `offbeat --help` does without.
_HOME = {
    "Budget": "experiment",
    "Cluster": "cluster",
    "Experiment": "experiment",
    "Fault": "cluster",
    "Method": "method",
    "Node": "node",
    "PeerLost": "suspensions",
    "ServerMethod": "method",
    "distribute": "runtime.loop",
    "load_run": "runs",
    "message": "messages",
    "reestimate_statistics": "batch_norm",
    "replay": "api",
    "run": "api",
    "simulate": "api",
}
_MODULES = {
    "cluster": "cluster",
    "compare": "compare",
    "loggers": "loggers",
    "methods": "methods",
    "problems": "problems",
    "sweep": "sweep",
    "topologies": "topology",
    "topology": "topology",
}

__all__ = [
    "Budget",
    "Cluster",
    "Experiment",
    "Fault",
    "Method",
    "Node",
    "PeerLost",
    "ServerMethod",
    "cluster",
    "compare",
    "distribute",
    "load_run",
    "loggers",
    "message",
    "methods",
    "problems",
    "reestimate_statistics",
    "replay",
    "run",
    "simulate",
    "sweep",
    "topologies",
    "topology",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = importlib.import_module(f".{_MODULES[name]}", __name__)
    elif name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
