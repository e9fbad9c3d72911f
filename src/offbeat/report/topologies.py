"""What topologies cost and how fast they mix, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from rich.table import Table
from scipy.sparse.csgraph import shortest_path

from ..spectra import contraction, sampled_rounds, sparse_mixing_matrix
from ..topology import Topology


@dataclass(frozen=True, kw_only=True)
class Properties:
    """What is known of a topology among so many workers.

    Args:
        degree: least and greatest number of workers that one sends to in a round.
        diameter: hops between the two farthest, over the edges of one period; None if random.
        period: rounds until it repeats; None if random.
        contraction: factor on the consensus distance per round; None where it is not known.
        doubly_stochastic: whether rows of W sum to 1 as well, in every round looked at.
        sends: mean number of messages in a round, of the busiest worker and of all together.
    """

    degree: tuple[int, int]
    diameter: int | None
    period: int | None
    contraction: float | None
    doubly_stochastic: bool
    sends: tuple[float, float]

    @property
    def rounds_to_tenth(self) -> float:
        """Rounds until the consensus distance is a tenth; inf for never, nan if not known."""
        if self.contraction is None:
            return math.nan
        if self.contraction == 0:
            return float(self.period or 1)
        if self.contraction > 1 - 1e-12:
            return math.inf
        return math.log(10) / -math.log(self.contraction)


def properties(topology: Topology, size: int) -> Properties:
    """Validate and look at one period, or at the first rounds of a random topology.

    Raises:
        ValueError: the topology does not exist for `size` workers, or does not connect them.
    """
    topology.validate(size)
    period = topology.period(size)
    rounds = range(sampled_rounds(size) if period is None else period)
    sent = np.zeros((len(rounds), size), dtype=np.int64)
    doubly = True
    union = scipy.sparse.csr_array((size, size))
    for k in rounds:
        W = sparse_mixing_matrix(topology, size, k)
        doubly = doubly and np.allclose(W.sum(axis=1), 1, rtol=0, atol=1e-9)
        sent[k] = [len(topology.out_neighbors(rank, size, k)) for rank in range(size)]
        if period is not None:
            union = union + W
    factor = contraction(topology, size) if period is not None or doubly else None
    return Properties(
        degree=(int(sent.min()), int(sent.max())),
        diameter=None if period is None else _diameter(union),
        period=period,
        contraction=factor,
        doubly_stochastic=doubly,
        sends=(float(sent.mean(axis=0).max()), float(sent.sum(axis=1).mean())),
    )


def topologies_table(known: Mapping[str, Properties | None], size: int, message: int) -> Table:
    """One line per topology, None for one that does not exist; `message` is bytes sent at once."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"{size} {'worker' if size == 1 else 'workers'}\ntopology", overflow="fold")
    for column in (
        "out-\ndegree",
        "\ndiameter",
        "\nperiod",
        "second\neigenvalue",
        "spectral\ngap",
        "rounds\nto 1/10",
        "doubly\nstochastic",
        "a worker\nsends",
        "all\nsend",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for label, found in known.items():
        table.add_row(label, *(_cells(found, message) if found else ["none", *[""] * 8]))
    return table


def notes(known: Iterable[Properties | None]) -> list[str]:
    """What the table's figures mean."""
    found = [entry for entry in known if entry is not None]
    lines = ["eigenvalue and gap are per round; bytes are the busiest worker's, and all workers'"]
    if any(entry.period is None for entry in found):
        lines.append("random: the root of the second eigenvalue of E[W'W], estimated")
    if any(entry.contraction is not None and not entry.doubly_stochastic for entry in found):
        lines.append("where W is not doubly stochastic, only push-sum methods reach the mean")
    return lines


def _cells(found: Properties, message: int) -> Sequence[str]:
    low, high = found.degree
    factor, rounds = found.contraction, found.rounds_to_tenth
    near_one = factor is not None and factor > 0.999
    return (
        str(low) if low == high else f"{low}-{high}",
        "-" if found.diameter is None else str(found.diameter),
        "random" if found.period is None else str(found.period),
        "-" if factor is None else f"{factor:.6f}" if near_one else f"{factor:.3f}",
        "-" if factor is None else f"{1 - factor:.2g}" if near_one else f"{1 - factor:.3f}",
        "-" if math.isnan(rounds) else "never" if math.isinf(rounds) else _rounds(rounds),
        "yes" if found.doubly_stochastic else "no",
        *(_bytes(messages * message) for messages in found.sends),
    )


def _rounds(rounds: float) -> str:
    return f"{rounds:,.1f}" if rounds < 100 else f"{rounds:,.0f}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"


def _diameter(union: scipy.sparse.csr_array) -> int:
    size = int(union.sum(axis=0).size)
    edges = union.nnz - int((union.diagonal() != 0).sum())
    if edges == size * (size - 1):
        return int(size > 1)  # Thousands of workers have too many edges to walk.
    return int(shortest_path(union.T, unweighted=True).max())
