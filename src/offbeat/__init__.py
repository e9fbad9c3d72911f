"""offbeat: asynchronous, decentralized and local-update SGD for PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from . import methods, problems, topology
from . import topology as topologies
from .batch_norm import reestimate_statistics
from .cluster import Cluster, Fault
from .experiment import Budget, Experiment
from .method import Method, ServerMethod
from .node import Node, PeerLost

# `run` and `message` are also the names of submodules, so these come after every import of those.
from .api import replay, run, simulate  # isort: skip
from .message import message  # isort: skip

if TYPE_CHECKING:
    from .runtime.loop import distribute

__all__ = [
    "Budget",
    "Cluster",
    "Experiment",
    "Fault",
    "Method",
    "Node",
    "PeerLost",
    "ServerMethod",
    "distribute",
    "message",
    "methods",
    "problems",
    "reestimate_statistics",
    "replay",
    "run",
    "simulate",
    "topologies",
    "topology",
]


def __getattr__(name: str) -> Any:
    if name == "distribute":
        from .runtime.loop import distribute

        return distribute
    raise AttributeError(f"module 'offbeat' has no attribute {name!r}")
