"""Links: nodes' own lines, sites with a backbone between them, and outages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checks import require_distinct, require_rate, require_seconds


@dataclass(frozen=True, kw_only=True)
class Access:
    """A node's own line. What is not given is the cluster's.

    Args:
        up: bytes per second that it sends.
        down: bytes per second that it receives.
        latency: seconds. Between two nodes it is the mean of theirs.
    """

    up: float | None = None
    down: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        if self.up is not None:
            require_rate("access.up", self.up)
        if self.down is not None:
            require_rate("access.down", self.down)
        if self.latency is not None:
            require_seconds("access.latency", self.latency)


@dataclass(frozen=True, kw_only=True)
class Site:
    """Nodes in one place, such as a data centre; workers come first, servers after them."""

    name: str
    nodes: tuple[int, ...]

    def __post_init__(self) -> None:
        require_distinct(f"site {self.name}", self.nodes)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """What all traffic from one site to another shares, on top of the nodes' own lines.

    Args:
        latency: seconds, added to that of the nodes' lines.
        bandwidth: bytes per second of each ordered pair of sites.
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        require_seconds("backbone.latency", self.latency)
        require_rate("backbone.bandwidth", self.bandwidth)


@dataclass(frozen=True, kw_only=True)
class Outage:
    """From `at` to `until` nothing begins to pass between some nodes and the rest.

    What was under way still arrives, and what is sent meanwhile waits for the end. Nobody counts
    as gone.

    Args:
        isolated: the nodes that are cut off; they still reach each other.
        at: seconds since the run began.
        until: seconds since the run began.
    """

    isolated: tuple[int, ...]
    at: float
    until: float

    def __post_init__(self) -> None:
        require_distinct("outage.isolated", self.isolated)
        require_seconds("outage.at", self.at)
        if not self.until > self.at or not math.isfinite(self.until):
            raise ValueError(
                f"outage.until is {self.until:g} s; it must be a time after its beginning at "
                f"{self.at:g} s"
            )


def require_apart(sites: tuple[Site, ...]) -> None:
    """Sites have names of their own and share no node."""
    home: dict[int, str] = {}
    names: list[str] = []
    for site in sites:
        if site.name in names:
            raise ValueError(f"cluster.sites has two sites named {site.name}")
        names.append(site.name)
        for node in site.nodes:
            if node in home:
                raise ValueError(
                    f"cluster.sites puts node {node} in both {home[node]} and {site.name}"
                )
            home[node] = site.name
