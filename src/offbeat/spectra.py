"""Spectra of mixing matrices: how fast gossip averages."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse import linalg

from .mixing import Matrix, mixing_entries, require_column_stochastic
from .topology import Topology

Sparse = scipy.sparse.csr_array
SCIPY: Any = linalg
"""Whose published types are wrong."""
DENSE = 512
"""Above so many workers eigenvalues are found by iteration."""


def sparse_mixing_matrix(topology: Topology, size: int, round: int = 0) -> Sparse:
    """`mixing_matrix`, for large n."""
    rows, columns, weights = mixing_entries(topology, size, round)
    return Sparse((weights, (rows, columns)), shape=(size, size))


def second_eigenvalue(W: Matrix | Sequence[Matrix]) -> float:
    """Largest modulus among the eigenvalues of a column-stochastic W (n, n), one 1 left out.

    W may be a period of T matrices (T, n, n), applied first to last: then that of their product.
    0 averages exactly, 1 never reaches consensus. Raises ValueError if W is not column-stochastic.
    """
    period = np.asarray(W, dtype=np.float64)
    if period.ndim == 2:
        period = period[None]
    for factor in period:
        require_column_stochastic(factor)
    return _second([Sparse(factor) for factor in period])


def spectral_gap(W: Matrix | Sequence[Matrix]) -> float:
    """1 - second_eigenvalue(W): per round for one matrix, per period for several."""
    return 1 - second_eigenvalue(W)


def contraction(topology: Topology, size: int) -> float:
    """Factor by which a round of gossip shrinks the consensus distance, in the long run.

    With a period of T rounds the T-th root of `second_eigenvalue`: exact. 0 averages exactly in a
    period, 1 never reaches consensus.

    Of a random topology the root of the second eigenvalue of E[W^T W]: the mean square of the
    consensus distance shrinks by that eigenvalue per round or faster. It is estimated over the
    first rounds, 2,000 of them, or fewer for large n, and needs doubly stochastic W.

    Raises ValueError if a random W is not doubly stochastic.

    Reference: Boyd et al., "Randomized Gossip Algorithms", IEEE Transactions on Information Theory
    2006.
    """
    period = topology.period(size)
    if period is not None:
        factors = [sparse_mixing_matrix(topology, size, round) for round in range(period)]
        return _second(factors) ** (1 / period)
    drawn = [sparse_mixing_matrix(topology, size, k) for k in range(sampled_rounds(size))]
    for W in drawn:
        if not np.allclose(W.sum(axis=1), 1, rtol=0, atol=1e-9):
            raise ValueError(
                f"{type(topology).__name__} has random matrices whose rows do not sum to 1: "
                "their contraction is not known"
            )
    return math.sqrt(_second_moment(drawn[::2], drawn[1::2]))


def sampled_rounds(size: int) -> int:
    """Rounds over which random topologies are looked at; an even number."""
    return max(20, min(2000, 200_000 // size // 2 * 2))


def _second(factors: Sequence[Sparse]) -> float:
    """Largest modulus of the eigenvalues of the product, the last first, one 1 left out."""
    size = _size(factors[0])

    # 1^T is a left eigenvector, so taking J/n away turns that one eigenvalue 1 into 0 and no other.
    def deflated(x: Matrix) -> Matrix:
        y = x
        for factor in factors:
            y = factor @ y
        return y - x.mean(axis=0)

    if size > DENSE:
        start = _start(size)
        if np.linalg.norm(deflated(start)) < 1e-12 * np.linalg.norm(start):
            return 0.0  # Exact averages leave the iteration nothing to go by.
        operator = SCIPY.LinearOperator((size, size), matvec=deflated, dtype=np.float64)
        symmetric = len(factors) == 1 and abs(factors[0] - factors[0].T).max() < 1e-15
        solve = SCIPY.eigsh if symmetric else SCIPY.eigs
        with contextlib.suppress(linalg.ArpackNoConvergence):
            found = solve(
                operator, k=1, v0=start, ncv=80, maxiter=100, tol=1e-9, return_eigenvectors=False
            )
            return float(np.abs(found).max())
    found = float(np.abs(np.linalg.eigvals(deflated(np.eye(size)))).max())
    return found if found > 1e-14 else 0.0


def _second_moment(first: Sequence[Sparse], second: Sequence[Sparse]) -> float:
    """Largest eigenvalue of E[W^T W], the 1 of the vector 1 left out, from two samples.

    The greatest eigenvalue of one sample's mean is too large: its eigenvector follows the noise.
    So that of either sample is valued by the mean of the other.
    """
    size = _size(first[0])
    if size == 1:
        return 0.0
    stacked = [scipy.sparse.vstack(drawn, format="csr") for drawn in (first, second)]

    def moment(k: int, x: Matrix) -> Matrix:
        centred = x - x.mean(axis=0)
        y = stacked[k].T @ (stacked[k] @ centred) / len((first, second)[k])
        return y - y.mean(axis=0)

    values: list[float] = []
    for k in (0, 1):
        if size > DENSE:
            operator = SCIPY.LinearOperator(
                (size, size), matvec=functools.partial(moment, k), dtype=np.float64
            )
            vector = SCIPY.eigsh(operator, k=1, which="LA", v0=_start(size), tol=1e-6)[1][:, 0]
        else:
            vector = np.linalg.eigh(moment(k, np.eye(size)))[1][:, -1]
        values.append(float(vector @ moment(1 - k, vector)))
    return max(0.0, sum(values) / 2)


def _size(W: Sparse) -> int:
    return int(W.sum(axis=0).size)


def _start(size: int) -> Matrix:
    """(n,): the same start of every iteration, along no eigenvector in particular."""
    return np.random.Generator(np.random.PCG64(0)).normal(size=size)
