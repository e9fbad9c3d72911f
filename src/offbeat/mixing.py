"""Mixing matrices: W (n, n) float64, where W[i, j] is the weight with which j's vector enters i.

One round of gossip is x <- W x on the stacked vectors x (n, d). Columns that sum to 1 conserve the
sum over workers (push-sum); rows that do so too keep consensus (gossip averaging). How fast they
average is in `spectra.py`.
"""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from offbeat.topology import Topology, neighbors, node_order
from offbeat.topology import require_column_stochastic as require_column_stochastic

Matrix = NDArray[np.float64]


def mixing_matrix(topology: Topology, size: int, round: int = 0) -> Matrix:
    """Column-stochastic W (n, n) of `topology` at `round`, everyone live."""
    rows, columns, weights = mixing_entries(topology, size, round)
    W = np.zeros((size, size))
    W[rows, columns] = weights
    return W


def mixing_entries(
    topology: Topology, size: int, round: int
) -> tuple[list[int], list[int], list[float]]:
    """The entries of that matrix which are not 0: rows, columns and weights."""
    rows, columns, weights = list[int](), list[int](), list[float]()
    for j in range(size):
        peers = neighbors(topology, size, j, round)
        rows += (j, *peers.out)
        columns += [j] * (1 + len(peers.out))
        weights += (peers.self_weight, *peers.out.values())
    return rows, columns, weights


def metropolis_hastings(graph: nx.Graph[Any]) -> Matrix:
    """Symmetric doubly stochastic weights of an undirected graph, rows in its `node_order`:

        W_ij = 1 / (1 + max(degree_i, degree_j)) on edges,  W_ii = 1 - sum_j W_ij.

    A directed graph will do if every edge goes both ways, otherwise ValueError. Self-loops and edge
    attributes are ignored. `WeightedGraph(weights=...)` makes a topology of the result.

    Reference: Xiao, Boyd, Lall, "A Scheme for Robust Distributed Sensor Fusion Based on Average
    Consensus", IPSN 2005.
    """
    nodes = node_order(graph)
    peers = {node: set(graph.adj[node]) - {node} for node in nodes}
    rank = {node: k for k, node in enumerate(nodes)}
    W = np.zeros((len(nodes), len(nodes)))
    for a in nodes:
        for b in peers[a]:
            if a not in peers[b]:
                raise ValueError(
                    f"edge {a} -> {b} has no edge back: symmetric weights need an undirected graph"
                )
            W[rank[a], rank[b]] = 1 / (1 + max(len(peers[a]), len(peers[b])))
    np.fill_diagonal(W, 1 - W.sum(axis=1))
    return W


def require_doubly_stochastic(W: Matrix, tolerance: float = 1e-9) -> None:
    """Raise ValueError unless W (n, n) is non-negative and its columns and rows sum to 1."""
    require_column_stochastic(W, tolerance)
    sums = W.sum(axis=1)
    for i in np.flatnonzero(np.abs(sums - 1) > tolerance):
        raise ValueError(
            f"row {i} of the mixing matrix sums to {float(sums[i])}, not 1: use "
            "MetropolisHastings(topology=...), or a push-sum method, which needs stochastic "
            "columns only"
        )
