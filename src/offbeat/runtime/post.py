"""Post: messages under way in the simulator, from their sending to their receiver's mailbox."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from ..cluster import Cluster
from ..messages import codec_of
from ..trace import DELIVERED, LOST, Trace
from .clock import SECOND, VirtualClock
from .network import Outages, network_of
from .queues import Queues, Transfer
from .scheduler import Scheduler


class Link:
    """Messages on their way between two nodes, first in, first out."""

    __slots__ = ("broken", "last", "queue", "waiting")

    def __init__(self) -> None:
        self.queue: deque[Transfer] = deque()
        """Those that have begun."""
        self.waiting = 0
        """How many have not."""
        self.last = 0
        """When the last of the queue arrives, in nanoseconds."""
        self.broken = False


class Post:
    """Carries messages between nodes.

    Args:
        hosts: of each node, its host.
        servers: whose processors work on every message that reaches them, one at a time.
    """

    def __init__(
        self,
        cluster: Cluster,
        clock: VirtualClock,
        scheduler: Scheduler,
        trace: Trace,
        hosts: Sequence[int],
        servers: range,
    ) -> None:
        self.clock = clock
        self.scheduler = scheduler
        self.trace = trace
        self.hosts = hosts
        self.network = network_of(cluster, max(hosts) + 1)
        self.bytes_sent = 0
        self.lost: list[tuple[int, int, Any]] = []
        self._outages = Outages(cluster, max(hosts) + 1)
        self._queues = Queues(self.network, self._outages, clock, self._begin_waiting)
        self._links: dict[tuple[int, int], Link] = {}
        self._former: list[Link] = []
        """Links from and to earlier lives of nodes that came back."""
        self._ns_per_byte = cluster.server_work * SECOND
        self._servers = servers if cluster.server_work > 0 else range(0)
        self._worked_on: dict[int, deque[tuple[int, Any]]] = {rank: deque() for rank in servers}
        """Of each server the messages that have reached it, and wait for its processor."""
        self._processor_free = dict.fromkeys(servers, 0)

    @property
    def under_way(self) -> list[tuple[int, int, Any]]:
        """Messages that no mailbox holds yet: (source, to, message)."""
        links = [*self._links.values(), *self._former]
        begun = [(t.source, t.to, t.message) for link in links for t in link.queue]
        waiting = [(t.source, t.to, t.message) for t in self._queues]
        arrived = [
            (source, server, message)
            for server, queue in self._worked_on.items()
            for source, message in queue
            if message is not None
        ]
        return begun + waiting + arrived

    def send(self, source: int, to: int, message: Any) -> None:
        if not 0 <= to < len(self.hosts):
            raise ValueError(f"there is no node {to}; nodes are 0 to {len(self.hosts) - 1}")
        codec = codec_of(type(message))
        message = codec.copy(message)
        size, here, there = codec.size(message), self.hosts[source], self.hosts[to]
        link = self._links.get((source, to))
        if link is None:
            link = self._links[source, to] = Link()
        transfer = Transfer(source, to, message, size, self.clock.now, here, there, link)
        if here != there:
            self.bytes_sent += size
            if self._queues.must_wait(transfer):
                link.waiting += 1
                self._queues.put(transfer)
                return
        self._begin(transfer)

    def _begin_waiting(self, transfer: Transfer) -> None:
        transfer.link.waiting -= 1
        self._begin(transfer)

    def _begin(self, transfer: Transfer) -> None:
        link, now = transfer.link, self.clock.now
        transfer.begun, link.last = self.network.transfer(
            transfer.here, transfer.there, transfer.size, now
        )
        link.queue.append(transfer)
        self.clock.at(link.last, self._arrive, link)

    def _arrive(self, link: Link) -> None:
        transfer = link.queue.popleft()
        source, to, message = transfer.source, transfer.to, transfer.message
        arrives = to in self.scheduler.nodes and not link.broken
        self._record(transfer, DELIVERED if arrives else LOST)
        if not arrives:
            self.lost.append((source, to, message))
        elif to in self._servers:
            self._work_on(to, source, message, transfer.size)
        else:
            self.scheduler.deliver(to, source, message)
            self.scheduler.drain()

    def _record(self, transfer: Transfer, outcome: int) -> None:
        kind = self.trace.kind(type(transfer.message).__name__)
        row = (
            transfer.source,
            transfer.to,
            kind,
            transfer.size,
            transfer.sent,
            transfer.begun,
            self.clock.now,
            outcome,
        )
        self.trace.rows["messages"].append(row)

    # A server's own work

    def _work_on(self, server: int, source: int, message: Any, size: int) -> None:
        begin = max(self.clock.now, self._processor_free[server])
        end = self._processor_free[server] = begin + round(size * self._ns_per_byte)
        self.trace.rows["work"].append((server, begin, end))
        self._worked_on[server].append((source, message))
        self.clock.at(end, self._worked, server)

    def _worked(self, server: int) -> None:
        source, message = self._worked_on[server].popleft()
        if message is not None:  # Not lost meanwhile.
            self.scheduler.deliver(server, source, message)
            self.scheduler.drain()

    # Departures and returns

    def cut(self, rank: int, *, crashed: bool) -> None:
        """A node departs: what a crashed one sent and has not arrived never will."""
        if crashed:
            for (source, _), link in self._links.items():
                link.broken |= source == rank
            self._drop_waiting(rank)
        self._drop_work(server=rank)

    def _drop_waiting(self, source: int) -> None:
        """What that node has not begun to send is lost."""
        for transfer in self._queues.drop(source):
            transfer.link.waiting -= 1
            transfer.begun = self.clock.now
            self._record(transfer, LOST)
            self.lost.append((source, transfer.to, transfer.message))

    def _drop_work(self, server: int | None = None, source: int | None = None) -> None:
        """What waits for that server's processor, or comes from that node, is lost."""
        for at, queue in self._worked_on.items():
            for place, (sender, message) in enumerate(queue):
                if message is not None and (at == server or sender == source):
                    queue[place] = (sender, None)
                    self.lost.append((sender, at, message))

    def noticed_at(self, rank: int, other: int, *, crashed: bool) -> int:
        """When `other` sees that `rank` has departed now: after its last message, if it left."""
        here, there, now = self.hosts[rank], self.hosts[other], self.clock.now
        link = self._links.get((rank, other))
        last = now if link is None or crashed else link.last
        reached = self._outages.end(here, there, now) + self.network.latency(here, there)
        # The last message may arrive at that very instant.
        return max(reached, last + 1)

    def owed(self, rank: int, other: int) -> int | None:
        """When to look again, if something that `rank` sent before it left is still to come."""
        link = self._links.get((rank, other))
        if link is not None and not link.broken and (link.waiting or link.queue):
            here, there = self.hosts[rank], self.hosts[other]
            return max(self._queues.ready_at(here, there), link.last) + 1
        if any(source == rank for source, _ in self._worked_on.get(other, ())):
            return self._processor_free[other] + 1
        return None

    def renew(self, rank: int) -> None:
        """A node comes back: nothing between its earlier life and the others arrives any more."""
        for pair in [pair for pair in self._links if rank in pair]:
            link = self._links.pop(pair)
            link.broken = True
            self._former.append(link)
        self._former = [link for link in self._former if link.queue or link.waiting]
        self._drop_waiting(rank)
        self._drop_work(source=rank)
        self.lost += self.scheduler.forget(rank)
