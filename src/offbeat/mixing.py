"""Mixing matrices: W (n, n) float64, where W[i, j] is the weight with which j's vector enters i.

One round of gossip is x <- W x on the stacked vectors x (n, d). Columns that sum to 1 conserve the
sum over workers (push-sum); rows that do so too keep consensus (gossip averaging).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from offbeat.topology import Topology, neighbors, node_order
from offbeat.topology import require_column_stochastic as require_column_stochastic

Matrix = NDArray[np.float64]


def mixing_matrix(topology: Topology, size: int, round: int = 0) -> Matrix:
    """Column-stochastic W (n, n) of `topology` at `round`, everyone live."""
    W = np.zeros((size, size))
    for j in range(size):
        peers = neighbors(topology, size, j, round)
        W[j, j] = peers.self_weight
        for i, weight in peers.out.items():
            W[i, j] = weight
    return W


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
            "metropolis_hastings(graph), or a push-sum method, which needs stochastic columns only"
        )


def second_eigenvalue(W: Matrix | Sequence[Matrix]) -> float:
    """Largest modulus among the eigenvalues of a column-stochastic W (n, n), one 1 left out.

    W may be a period of T matrices (T, n, n), applied first to last: then that of their product.
    0 averages exactly, 1 never reaches consensus. Raises ValueError if W is not column-stochastic.
    """
    period = np.asarray(W, dtype=np.float64)
    if period.ndim == 2:
        period = period[None]
    product = np.eye(period.shape[-1])
    for factor in period:
        require_column_stochastic(factor)
        product = factor @ product
    # 1^T is a left eigenvector, so taking J/n away turns that one eigenvalue 1 into 0 and no other.
    return float(np.abs(np.linalg.eigvals(product - 1 / len(product))).max())


def spectral_gap(W: Matrix | Sequence[Matrix]) -> float:
    """1 - second_eigenvalue(W): per round for one matrix, per period for several."""
    return 1 - second_eigenvalue(W)
