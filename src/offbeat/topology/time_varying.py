"""Topologies taken in turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .base import Topology


@dataclass(frozen=True, kw_only=True)
class TimeVarying(Topology):
    """Several topologies in turn: round k is round k // m of number k mod m, of m in all.

    So each goes through its own rounds without gaps. Together they must connect the workers; each
    alone need not.

    Raises ValueError if there is none.
    """

    topologies: Sequence[Topology]

    def __post_init__(self) -> None:
        object.__setattr__(self, "topologies", tuple(self.topologies))
        if not self.topologies:
            raise ValueError("TimeVarying has no topologies: give at least one")

    def period(self, size: int) -> int | None:
        periods = [topology.period(size) for topology in self.topologies]
        known = [period for period in periods if period is not None]
        return len(periods) * math.lcm(*known) if len(known) == len(periods) else None

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        topology, own_round = self.at(round)
        return topology.out_neighbors(rank, size, own_round)

    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        topology, own_round = self.at(round)
        return topology.in_neighbors(rank, size, own_round)

    def column(self, rank: int, size: int, round: int) -> Mapping[int, float]:
        topology, own_round = self.at(round)
        return topology.column(rank, size, own_round)

    def at(self, round: int) -> tuple[Topology, int]:
        """The topology of that round, and which of its own rounds it is."""
        own_round, k = divmod(round, len(self.topologies))
        return self.topologies[k], own_round

    def require_size(self, size: int) -> None:
        for topology in self.topologies:
            topology.require_size(size)
