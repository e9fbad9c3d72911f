"""Modelled network: lines between hosts whose two sides each carry one transfer at a time.

A side is what one transfer occupies: a host's outgoing or incoming side, or a backbone's direction.
Messages between nodes of one host arrive at once. Times are integer nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..cluster import Cluster
from .clock import SECOND, nanoseconds


class Network(Protocol):
    """When messages arrive."""

    def latency(self, source: int, to: int) -> int:
        """Between two hosts, in nanoseconds."""
        ...

    def sides(self, source: int, to: int) -> tuple[int, ...]:
        """What a transfer between two hosts occupies, by number."""
        ...

    def free_at(self, side: int) -> int:
        """When what occupies that side ends."""
        ...

    def begin(self, source: int, to: int, now: int) -> int:
        """When all sides that a transfer between two hosts needs are free."""
        ...

    def transfer(self, source: int, to: int, size: int, now: int) -> tuple[int, int]:
        """Let a transfer of `size` bytes begin as soon as its sides are free.

        Returns when that is, and when it arrives. What is free before then stays idle until then,
        so a transfer that would have to wait is better asked for later: see `Queues`.
        """
        ...


class UniformNetwork:
    """Lines that are all alike.

    A transfer occupies the sender's outgoing and the receiver's incoming side for the same
    interval, so that a parameter server congests as a real one does; latency comes after it and
    occupies nobody.
    """

    def __init__(self, hosts: int, latency: float, bandwidth: float) -> None:
        self._latency = nanoseconds(latency)
        self._ns_per_byte = SECOND / bandwidth
        self._hosts = hosts
        self._outgoing_free = [0] * hosts
        self._incoming_free = [0] * hosts

    def latency(self, source: int, to: int) -> int:
        return 0 if source == to else self._latency

    def sides(self, source: int, to: int) -> tuple[int, ...]:
        return source, self._hosts + to

    def free_at(self, side: int) -> int:
        n = self._hosts
        return self._outgoing_free[side] if side < n else self._incoming_free[side - n]

    def begin(self, source: int, to: int, now: int) -> int:
        return max(now, self._outgoing_free[source], self._incoming_free[to])

    def transfer(self, source: int, to: int, size: int, now: int) -> tuple[int, int]:
        if source == to:
            return now, now
        begin = max(now, self._outgoing_free[source], self._incoming_free[to])
        end = begin + round(size * self._ns_per_byte)
        self._outgoing_free[source] = self._incoming_free[to] = end
        return begin, end + self._latency

    def ring(
        self, hosts: Sequence[int], entered: Sequence[int], sizes: Sequence[int], rounds: int
    ) -> NDArray[np.int64]:
        """Chunks that go round a ring whose members enter at the given times.

        Chunk c, of `sizes[c]` bytes, starts at member c and is passed on `rounds` times. Returns
        when each member has received its last. Equal to passing the messages one by one, as long
        as nothing else is on these lines.
        """
        here = np.array(entered, np.int64)
        if len(hosts) == 1:
            return here
        busy = np.array([round(size * self._ns_per_byte) for size in sizes], np.int64)
        outgoing = np.array([self._outgoing_free[host] for host in hosts], np.int64)
        incoming = np.array([self._incoming_free[host] for host in hosts], np.int64)
        # At step s member c + s sends chunk c on, which it has from member c + s - 1; the same
        # member sent chunk c + 1 just before. `sent[c]` is when chunk c has been sent on.
        sent = np.maximum(np.maximum(here, outgoing), np.roll(incoming, -1)) + busy
        before = np.empty_like(sent)
        for _ in range(rounds - 1):
            before[:-1], before[-1] = sent[1:], sent[0]
            sent += self._latency
            np.maximum(sent, before, out=sent)
            sent += busy
        outgoing = np.roll(sent, rounds - 1)
        incoming = np.roll(outgoing, 1)
        for index, host in enumerate(hosts):
            self._outgoing_free[host] = int(outgoing[index])
            self._incoming_free[host] = int(incoming[index])
        # A member that was late itself has been sent to before it came.
        return np.maximum(incoming + self._latency, here)


class UnequalNetwork:
    """Lines of their own for some hosts, sites, and backbones between those.

    A transfer begins when the sender's outgoing side, the receiver's incoming side and, between
    two sites, the backbone from the one to the other are all free. It occupies each of them for
    its bytes at that one's own rate, and arrives after its bytes at the least of these rates and
    the latency: the mean of the two hosts', and the backbone's between sites.
    """

    def __init__(self, hosts: int, cluster: Cluster) -> None:
        access = [cluster.access.get(host) for host in range(hosts)]
        ups = [a.up if a and a.up is not None else cluster.bandwidth for a in access]
        downs = [a.down if a and a.down is not None else cluster.bandwidth for a in access]
        self._up = [SECOND / rate for rate in ups]  # ns per byte
        self._down = [SECOND / rate for rate in downs]
        self._latency = [
            a.latency if a and a.latency is not None else cluster.latency for a in access
        ]
        self._outgoing_free = [0] * hosts
        self._incoming_free = [0] * hosts
        self._site = [cluster.site_of(host) for host in range(hosts)]
        backbone = cluster.backbone
        self._backbone = 0.0 if backbone is None else SECOND / backbone.bandwidth
        self._backbone_latency = 0.0 if backbone is None else backbone.latency
        self._backbone_free: dict[tuple[int, int], int] = {}
        self._sites = max(self._site) + 1

    def sides(self, source: int, to: int) -> tuple[int, ...]:
        hosts = len(self._up)
        between = self._site[source], self._site[to]
        if between[0] == between[1]:
            return source, hosts + to
        number = between[0] * self._sites + between[1]
        return source, hosts + to, 2 * hosts + number

    def free_at(self, side: int) -> int:
        hosts = len(self._up)
        if side < hosts:
            return self._outgoing_free[side]
        if side < 2 * hosts:
            return self._incoming_free[side - hosts]
        return self._backbone_free.get(divmod(side - 2 * hosts, self._sites), 0)

    def latency(self, source: int, to: int) -> int:
        if source == to:
            return 0
        seconds = (self._latency[source] + self._latency[to]) / 2
        if self._site[source] != self._site[to]:
            seconds += self._backbone_latency
        return nanoseconds(seconds)

    def begin(self, source: int, to: int, now: int) -> int:
        between = self._site[source], self._site[to]
        return max(
            now,
            self._outgoing_free[source],
            self._incoming_free[to],
            self._backbone_free.get(between, 0),
        )

    def transfer(self, source: int, to: int, size: int, now: int) -> tuple[int, int]:
        if source == to:
            return now, now
        begin = self.begin(source, to, now)
        slowest = max(self._up[source], self._down[to])
        self._outgoing_free[source] = begin + round(size * self._up[source])
        self._incoming_free[to] = begin + round(size * self._down[to])
        between = self._site[source], self._site[to]
        if between[0] != between[1]:
            slowest = max(slowest, self._backbone)
            self._backbone_free[between] = begin + round(size * self._backbone)
        return begin, begin + round(size * slowest) + self.latency(source, to)


class Outages:
    """When no transfer may begin between some hosts and the rest."""

    def __init__(self, cluster: Cluster, hosts: int) -> None:
        # In order of their beginning, so that one pass finds the end of several in a row.
        self._outages = sorted(
            (
                nanoseconds(outage.at),
                nanoseconds(outage.until),
                # A node that lives on another's host is wherever that host is.
                frozenset(node for node in outage.isolated if node < hosts),
            )
            for outage in cluster.outages
        )

    def __bool__(self) -> bool:
        return bool(self._outages)

    def end(self, source: int, to: int, when: int) -> int:
        """When the two hosts, apart at `when`, can reach each other again; else `when` itself."""
        for at, until, isolated in self._outages:
            if at <= when < until and (source in isolated) != (to in isolated):
                when = until
        return when


def network_of(cluster: Cluster, hosts: int) -> UniformNetwork | UnequalNetwork:
    """The network between that many hosts; a host's line is that of its lowest-numbered node."""
    if cluster.access or cluster.sites:
        return UnequalNetwork(hosts, cluster)
    return UniformNetwork(hosts, cluster.latency, cluster.bandwidth)
