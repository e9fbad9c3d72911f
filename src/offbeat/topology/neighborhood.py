"""A worker's neighbours and their weights, among those that are live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from .base import Topology


@dataclass(frozen=True)
class Neighbors:
    """A worker's live neighbours at one round; self_weight and the weights of `out` sum to 1."""

    out: Mapping[int, float]
    """rank -> weight with which this worker's vector enters that rank's"""
    into: tuple[int, ...]
    """ranks that send to this worker"""
    self_weight: float


def neighbors(
    topology: Topology,
    size: int,
    rank: int,
    round: int,
    live: Callable[[int], bool] | None = None,
) -> Neighbors:
    """Neighbours of `rank` at `round`, without those for which `live` is False.

    The weight of departed peers is shared out over the rest of the column in proportion, so what
    the worker keeps and sends still sums to 1; a worker left alone keeps all. Columns stay
    stochastic, hence sums over workers are conserved; a doubly stochastic W loses its row sums.
    """
    period = topology.period(size)
    if period is None:
        everyone = _neighbors(topology, size, rank, round)
    else:
        everyone = _cached_neighbors(topology, size, rank, round % period)
    if live is None:
        return everyone
    into = tuple(peer for peer in everyone.into if live(peer))
    out = {peer: weight for peer, weight in everyone.out.items() if live(peer)}
    if len(out) == len(everyone.out):
        if len(into) == len(everyone.into):
            return everyone
        return Neighbors(everyone.out, into, everyone.self_weight)
    total = everyone.self_weight + sum(out.values())
    if total == 0:
        return Neighbors(MappingProxyType({}), into, 1.0)
    rescaled = {peer: weight / total for peer, weight in out.items()}
    return Neighbors(MappingProxyType(rescaled), into, everyone.self_weight / total)


def _neighbors(topology: Topology, size: int, rank: int, round: int) -> Neighbors:
    out = dict(topology.column(rank, size, round))
    self_weight = out.pop(rank)
    into = topology.in_neighbors(rank, size, round)
    return Neighbors(MappingProxyType(out), into, self_weight)


# Room for 4096 workers times the 12 rounds of the one-peer exponential graph.
_cached_neighbors = lru_cache(maxsize=1 << 16)(_neighbors)
