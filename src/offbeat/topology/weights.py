"""Other weights for the edges of a topology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .base import Topology


@dataclass(frozen=True, kw_only=True)
class _Reweighted(Topology):
    """The edges of another topology."""

    topology: Topology

    def period(self, size: int) -> int | None:
        return self.topology.period(size)

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return self.topology.out_neighbors(rank, size, round)

    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return self.topology.in_neighbors(rank, size, round)

    def require_size(self, size: int) -> None:
        self.topology.require_size(size)


@dataclass(frozen=True, kw_only=True)
class MetropolisHastings(_Reweighted):
    """An undirected topology with weights that make W symmetric and doubly stochastic:

        W_ij = 1 / (1 + max(degree_i, degree_j)) on edges,  W_ii = 1 - sum_j W_ij,

    with the degrees of that round.

    Reference: Xiao, Boyd, Lall, "A Scheme for Robust Distributed Sensor Fusion Based on Average
    Consensus", IPSN 2005.
    """

    def column(self, rank: int, size: int, round: int) -> Mapping[int, float]:
        period = self.period(size)
        degrees = _degrees(self.topology, size, round if period is None else round % period)
        peers = self.out_neighbors(rank, size, round)
        shares = {peer: 1 / (1 + max(degrees[rank], degrees[peer])) for peer in peers}
        return {rank: 1 - sum(shares.values()), **shares}

    def validate(self, size: int) -> None:
        super().validate(size)
        # What is undirected at one random round is taken to be so at all.
        for round in range(self.period(size) or 1):
            _degrees(self.topology, size, round)


@dataclass(frozen=True, kw_only=True)
class SelfWeight(_Reweighted):
    """A topology in which each worker keeps a given weight of its own vector.

    The rest of its column goes to its neighbours in the proportions of that topology. Who has no
    neighbour in a round keeps all. Columns still sum to 1; rows do too if those of the topology do
    and every worker kept the same weight there.

    Args:
        topology: whose edges and proportions these are.
        weight: W_ii, one number for all workers or one for each, in [0, 1).

    Raises ValueError for other weights.
    """

    weight: float | Sequence[float] = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.weight, Sequence):
            object.__setattr__(self, "weight", tuple(float(weight) for weight in self.weight))
        for weight in self.weight if isinstance(self.weight, Sequence) else (self.weight,):
            if not 0 <= weight < 1:
                raise ValueError(f"weight is {weight}: give a number >= 0 and below 1")

    def column(self, rank: int, size: int, round: int) -> Mapping[int, float]:
        column = dict(self.topology.column(rank, size, round))
        others = sum(weight for peer, weight in column.items() if peer != rank)
        if others == 0:
            return {rank: 1.0}
        kept = self.weight[rank] if isinstance(self.weight, Sequence) else self.weight
        shares = {peer: (1 - kept) * weight / others for peer, weight in column.items()}
        return shares | {rank: kept}

    def require_size(self, size: int) -> None:
        super().require_size(size)
        if isinstance(self.weight, Sequence) and len(self.weight) != size:
            raise ValueError(
                f"SelfWeight has {len(self.weight)} weights but there are {size} workers: "
                "give one number, or one for each worker"
            )


# Asynchronous workers are at different rounds; those of random topologies never repeat.
@lru_cache(maxsize=256)
def _degrees(topology: Topology, size: int, round: int) -> tuple[int, ...]:
    """(n,): neighbours of each worker at that round; ValueError if an edge has none back."""
    degrees: list[int] = []
    for rank in range(size):
        out = topology.out_neighbors(rank, size, round)
        back = set(topology.in_neighbors(rank, size, round))
        if lost := sorted(set(out) - back):
            raise ValueError(
                f"MetropolisHastings needs an undirected topology, but "
                f"{type(topology).__name__} has an edge {rank} -> {lost[0]} and none back"
            )
        degrees.append(len(out))
    return tuple(degrees)
