"""What a topology is: who may send to whom at each round, and with which weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

import networkx as nx


class Topology(ABC):
    """Who sends to whom among `size` workers, ranked from 0, at each round.

    Subclasses are frozen, hashable dataclasses that define `out_neighbors` and `in_neighbors`;
    those that vary with the round define `period`, those with weights of their own `column`,
    those that do not exist for every size `require_size`.
    """

    @abstractmethod
    def out_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        """Ranks that `rank` sends to at `round`; never itself."""

    @abstractmethod
    def in_neighbors(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        """Ranks that send to `rank` at `round`; never itself."""

    def period(self, size: int) -> int | None:
        """Rounds after which the topology repeats: 1 if static, None if random."""
        return 1

    def column(self, rank: int, size: int, round: int) -> Mapping[int, float]:
        """Column `rank` of the mixing matrix, {receiver: weight} with `rank` itself; sums to 1.

        Uniform, 1 / (out-degree + 1), unless the topology says otherwise.
        """
        receivers = (rank, *self.out_neighbors(rank, size, round))
        return dict.fromkeys(receivers, 1 / len(receivers))

    def require_size(self, size: int) -> None:
        """Raise ValueError unless the topology exists for `size` workers, connected or not."""

    def validate(self, size: int) -> None:
        """Raise ValueError unless the edges of one period, taken together, connect `size` workers.

        A random topology has no period to go through: only its size is checked here.
        """
        if size < 1:
            raise ValueError(f"size is {size}: a topology needs at least one worker")
        self.require_size(size)
        rounds = range(self.period(size) or 0)
        if not rounds:
            return

        def out(rank: int) -> Iterable[int]:
            return (peer for k in rounds for peer in self.out_neighbors(rank, size, k))

        def into(rank: int) -> Iterable[int]:
            return (peer for k in rounds for peer in self.in_neighbors(rank, size, k))

        # Strongly connected: worker 0 reaches everyone, and everyone reaches worker 0.
        if (lost := _first_unreached(size, out)) is not None:
            source, target = 0, lost
        elif (lost := _first_unreached(size, into)) is not None:
            source, target = lost, 0
        else:
            return
        raise ValueError(
            f"{type(self).__name__} does not connect {size} workers: no path leads from worker "
            f"{source} to worker {target}; add an edge between their components"
        )

    def graph(self, size: int, round: int = 0) -> nx.DiGraph[int]:
        """The directed graph of that round, with nodes 0 to size - 1."""
        graph: nx.DiGraph[int] = nx.DiGraph()
        graph.add_nodes_from(range(size))
        for rank in range(size):
            graph.add_edges_from((rank, peer) for peer in self.out_neighbors(rank, size, round))
        return graph


def _first_unreached(size: int, step: Callable[[int], Iterable[int]]) -> int | None:
    """Lowest rank that no walk from rank 0 along `step` visits; None if all are visited."""
    seen = {0}
    frontier = [0]
    while frontier and len(seen) < size:
        for peer in step(frontier.pop()):
            if peer not in seen:
                seen.add(peer)
                frontier.append(peer)
    return next((rank for rank in range(size) if rank not in seen), None)
