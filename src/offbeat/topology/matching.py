"""Random matchings: at each round every worker has one partner at most."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .base import Topology


@dataclass(frozen=True, kw_only=True)
class Matching(Topology):
    """At each round every worker has one partner at most, as `partners` says.

    The same seed, size and round give the same matching everywhere.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: give an integer >= 0")

    @abstractmethod
    def partners(self, size: int, round: int) -> NDArray[np.int32]:
        """(n,): the partner of each rank, or the rank itself where it is left out."""

    def period(self, size: int) -> None:
        return None

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        partner = int(self.partners(size, round)[rank])
        return () if partner == rank else (partner,)

    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return self.out_neighbors(rank, size, round)


@dataclass(frozen=True, kw_only=True)
class BipartiteMatching(Matching):
    """At each round a random matching of even with odd ranks; an odd size leaves one even rank out.

    The ranks left out take turns. The same seed, size and round give the same matching everywhere.

    Raises ValueError if `seed` is negative.
    """

    def partners(self, size: int, round: int) -> NDArray[np.int32]:
        return _bipartite(self.seed, size, round)


@dataclass(frozen=True, kw_only=True)
class RandomMatching(Matching):
    """At each round a random matching of all ranks; an odd size leaves one of them out.

    The same seed, size and round give the same matching everywhere.

    Raises ValueError if `seed` is negative.

    Reference: Boyd et al., "Randomized Gossip Algorithms", IEEE Transactions on Information Theory
    2006 (there one pair at a time).
    """

    def partners(self, size: int, round: int) -> NDArray[np.int32]:
        return _any(self.seed, size, round)


# Asynchronous workers are at different rounds, so many matchings are in use at once.
@lru_cache(maxsize=1024)
def _bipartite(seed: int, size: int, round: int) -> NDArray[np.int32]:
    even = np.arange(0, size, 2, dtype=np.int32)
    odd = np.arange(1, size, 2, dtype=np.int32)
    if size % 2:
        even = np.delete(even, (seed + round) % len(even))
    odd = _shuffled(odd, seed, round)
    partners = np.arange(size, dtype=np.int32)
    partners[even] = odd
    partners[odd] = even
    return partners


@lru_cache(maxsize=1024)
def _any(seed: int, size: int, round: int) -> NDArray[np.int32]:
    partners = np.arange(size, dtype=np.int32)
    order = _shuffled(partners, seed, round)
    first, second = order[0 : size - 1 : 2], order[1:size:2]
    partners[first], partners[second] = second, first
    return partners


def _shuffled(ranks: NDArray[np.int32], seed: int, round: int) -> NDArray[np.int32]:
    # numpy promises the same raw bits in every version, which it does not for `permutation`.
    bits = np.asarray(np.random.PCG64([seed, round]).random_raw(len(ranks)))
    return ranks[np.argsort(bits, kind="stable")]
