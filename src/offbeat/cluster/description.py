"""Cluster: all of the machines and the network together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from .checks import require_positive, require_rate, require_seconds
from .compute import ComputeTime, Lognormal
from .faults import Fault, comings_and_goings, require_sense
from .links import Access, Backbone, Outage, Site, require_apart

AllReduce = Literal["ring", "whole-ring", "direct", "tree", "server", "shared"]
"""How `node.all_reduce` passes its messages."""
ALL_REDUCES: tuple[AllReduce, ...] = get_args(AllReduce)
MOST_WORKERS = 1_000_000
"""A cluster keeps something of each."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines and network. Nodes are numbered: workers come first, servers after them.

    Args:
        workers: how many workers there ever are; servers are further nodes, unless colocated.
        compute: seconds that one gradient takes on a worker of ordinary speed.
        computes: worker -> its own distribution instead.
        slow: worker -> how many times longer its gradients take.
        latency: latency of every link, in seconds.
        bandwidth: bandwidth of every host's outgoing and incoming side, in bytes per second.
        access: node -> its own line, where it differs.
        sites: places; nodes in none of them are in one further site together.
        backbone: what joins the sites; needed where there are two or more.
        collectives: "priced" computes a collective's timing in closed form when all have joined
            it; "messages" passes every one of its messages (the same times, more slowly).
        all_reduce: the algorithm of collectives.
        server_work: seconds that a server works for each byte of a message it has received.
        faults: what befalls nodes, and when.
        outages: when the network falls apart, and into what.
    """

    workers: int = 16
    compute: ComputeTime = Lognormal()
    computes: dict[int, ComputeTime] = field(default_factory=dict[int, ComputeTime])
    slow: dict[int, float] = field(default_factory=dict[int, float])
    latency: float = 1e-4
    bandwidth: float = 125e6
    access: dict[int, Access] = field(default_factory=dict[int, Access])
    sites: tuple[Site, ...] = ()
    backbone: Backbone | None = None
    collectives: Literal["priced", "messages"] = "priced"
    all_reduce: AllReduce = "ring"
    server_work: float = 0.0
    faults: tuple[Fault, ...] = ()
    outages: tuple[Outage, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"cluster.workers is {self.workers}; it must be at least 1")
        if self.workers > MOST_WORKERS:
            raise ValueError(
                f"cluster.workers is {self.workers}; it must be at most {MOST_WORKERS:,}"
            )
        require_seconds("cluster.latency", self.latency)
        require_rate("cluster.bandwidth", self.bandwidth)
        if not self.server_work >= 0 or not np.isfinite(self.server_work):
            raise ValueError(
                f"cluster.server_work is {self.server_work:g} s/byte; it must not be negative"
            )
        if self.all_reduce not in ALL_REDUCES:
            raise ValueError(
                f"cluster.all_reduce is {self.all_reduce!r}; it is one of {', '.join(ALL_REDUCES)}"
            )
        for rank, factor in self.slow.items():
            self._require_worker("slow", rank)
            require_positive(f"cluster.slow of worker {rank}", factor)
        for rank in self.computes:
            self._require_worker("computes", rank)
        require_apart(self.sites)
        self._require_backbone(self.workers)
        require_sense(self.faults)
        if all(self.begins_absent(rank) for rank in range(self.workers)):
            raise ValueError("cluster.faults lets every worker join late; one must be there")

    def _require_worker(self, field_name: str, rank: int) -> None:
        if not 0 <= rank < self.workers:
            raise ValueError(f"cluster.{field_name} names worker {rank} of {self.workers}")

    def _require_backbone(self, nodes: int) -> None:
        if self.backbone is not None:
            if not self.sites:
                raise ValueError("cluster.backbone joins sites; give cluster.sites too")
            return
        places = {self.site_of(node) for node in range(nodes)}
        places |= {self.site_of(node) for site in self.sites for node in site.nodes}
        if len(places) > 1:
            raise ValueError(
                f"cluster.sites are {len(places)} places, and nothing joins them; give "
                "cluster.backbone a latency and a bandwidth"
            )

    def require_nodes(self, nodes: int) -> None:
        """Refuse what names nodes that are not among the `nodes` (workers and servers).

        Raises:
            ValueError: naming the entry and the node.
        """
        named = [("access", node) for node in self.access]
        named += [(f"sites: {site.name}", node) for site in self.sites for node in site.nodes]
        named += [("outages", node) for outage in self.outages for node in outage.isolated]
        for what, node in named:
            if not 0 <= node < nodes:
                raise ValueError(
                    f"cluster.{what} names node {node}; there are {self.workers} workers and "
                    f"{nodes - self.workers} servers, 0 to {nodes - 1}"
                )
        for outage in self.outages:
            if len(outage.isolated) == nodes:
                raise ValueError(
                    f"cluster.outages at {outage.at:g} s isolates all {nodes} nodes, which "
                    "separates nobody; name those on one side"
                )
        self._require_backbone(nodes)

    @property
    def uniform(self) -> bool:
        """Whether every link is like every other, at all times."""
        return not (self.access or self.sites or self.backbone or self.outages)

    def site_of(self, node: int) -> int:
        """The number of that node's site; one more than the last for nodes in none."""
        for number, site in enumerate(self.sites):
            if node in site.nodes:
                return number
        return len(self.sites)

    def begins_absent(self, rank: int) -> bool:
        """Whether that node is not there when the run begins."""
        own = comings_and_goings(self.faults, rank)
        return bool(own) and own[0].kind == "join"

    def compute_times(self, rank: int, seed: int) -> Iterator[float]:
        """The seconds of each of that worker's gradients in turn, slow-downs by fault left out."""
        rng = np.random.default_rng([seed, rank, 0x7157])
        factor = self.slow.get(rank, 1.0)
        times = self.computes.get(rank, self.compute).stream(rng)
        return (seconds * factor for seconds in times)
