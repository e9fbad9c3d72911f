"""Exponential graphs: all hops of a power of two, at once or in turn."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Topology


@dataclass(frozen=True, kw_only=True)
class Exponential(Topology):
    """Static directed exponential graph: i sends to i + 2^k mod n for every 2^k < n."""

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return tuple((rank + (1 << k)) % size for k in range(_hops(size)))

    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return tuple((rank - (1 << k)) % size for k in range(_hops(size)))


@dataclass(frozen=True, kw_only=True)
class OnePeerExponential(Topology):
    """One hop of the exponential graph per round: at round k, i sends to

        i + 2^(k mod (floor(log2(n - 1)) + 1)) mod n.

    With n a power of two, log2(n) rounds average exactly.

    Reference: Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019.
    """

    def period(self, size: int) -> int:
        return max(1, _hops(size))

    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return ((rank + (1 << round % _hops(size))) % size,) if size > 1 else ()

    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return ((rank - (1 << round % _hops(size))) % size,) if size > 1 else ()


def _hops(size: int) -> int:
    """How many powers of two are below `size`: floor(log2(n - 1)) + 1, and 0 for n = 1."""
    return (size - 1).bit_length()
