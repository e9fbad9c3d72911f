"""Hogwild! as published: sums of costs that touch few coordinates each, trained by threads.

Unlike the rest of offbeat this needs no PyTorch for its gradients: costs and threads are compiled
by numba, for an update of a sparse model takes less than a microsecond. For dense models that
processes train together see `offbeat.methods.Hogwild`.
"""

from .completion import MatrixCompletion
from .cut import GraphCut, cut_instance
from .graphs import Graph
from .hypergraph import Hypergraph, Sparsity, circulant, pattern_for, random_edges
from .linear import (
    Samples,
    SparseLeastSquares,
    SparseLogistic,
    SparseSVM,
    linear_instance,
)
from .outcome import Collisions, Epoch, Outcome, load, save
from .perceptron import Perceptron, perceptron_instance
from .problem import Instance, SparseProblem
from .schemes import ABOUT, SCHEMES, UNWATCHED, Scheme, Settings
from .simulated import AccessTimes, simulate
from .theory import Conditions, step_size, updates
from .threads import train
from .training import Diverged

PROBLEMS: dict[str, type[SparseProblem]] = {
    problem.__name__: problem
    for problem in (
        SparseSVM,
        SparseLogistic,
        SparseLeastSquares,
        MatrixCompletion,
        GraphCut,
        Perceptron,
    )
}
"""The problems that a command line can name."""

__all__ = [
    "ABOUT",
    "PROBLEMS",
    "SCHEMES",
    "UNWATCHED",
    "AccessTimes",
    "Collisions",
    "Conditions",
    "Diverged",
    "Epoch",
    "Graph",
    "GraphCut",
    "Hypergraph",
    "Instance",
    "MatrixCompletion",
    "Outcome",
    "Perceptron",
    "Samples",
    "Scheme",
    "Settings",
    "SparseLeastSquares",
    "SparseLogistic",
    "SparseProblem",
    "SparseSVM",
    "Sparsity",
    "circulant",
    "cut_instance",
    "linear_instance",
    "load",
    "pattern_for",
    "perceptron_instance",
    "random_edges",
    "save",
    "simulate",
    "step_size",
    "train",
    "updates",
]
