"""Membership: who is there in a simulated run: crashes, departures, arrivals, slow-downs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ..cluster import Cluster, Fault
from ..method import ModelLost
from ..node import Node
from ..suspensions import GradientRequest
from ..trace import FAULT_KINDS, Trace
from .clock import VirtualClock, nanoseconds
from .meetings import Meetings
from .post import Post
from .scheduler import Scheduler
from .tasks import Task

NEVER = 1 << 62


class Carrier(Protocol):
    """What membership asks of the simulation."""

    clock: VirtualClock
    scheduler: Scheduler
    trace: Trace
    post: Post
    meetings: Meetings
    on_departure: Callable[[Node], None]

    @property
    def nodes(self) -> list[Node]: ...
    def _place(self, rank: int, start: Tensor) -> Node: ...
    def cancelled(self, task: Task, request: GradientRequest) -> None: ...


class Membership:
    """Carries out a cluster's faults.

    A node that comes back begins a new life: with the present model, from a round that nobody has
    begun, and without what its earlier life sent or was sent. Its minibatches and the times of
    its gradients go on where they were.
    """

    def __init__(self, simulation: Carrier, cluster: Cluster, quota: int | None) -> None:
        self.departed: set[int] = set()
        self.leaving: set[int] = set()
        """Those who depart at their next round."""
        self.slowed: dict[int, float] = {}
        self.quota = dict.fromkeys(range(cluster.workers), NEVER if quota is None else quota)
        """Number of gradients after which each worker has had its share."""
        self._whole_quota = quota
        self._simulation = simulation
        self._cluster = cluster
        self._lives: dict[int, int] = {}
        self._requests: dict[int, int] = {}
        """Gradients that a departed node had asked for."""

    def begin(self) -> None:
        """Plan the faults, and let nobody wait for those who are yet to come."""
        clock, cluster = self._simulation.clock, self._cluster
        absent = [rank for rank in range(cluster.workers) if cluster.begins_absent(rank)]
        for node in self._simulation.nodes:
            node.first_round.update(dict.fromkeys(absent, NEVER))
        for fault in cluster.faults:
            clock.at(nanoseconds(fault.at), self._befall, fault)
            if fault.kind == "slow" and fault.until < float("inf"):
                clock.at(nanoseconds(fault.until), self._recover, fault.rank)

    def _befall(self, fault: Fault) -> None:
        self._note(fault.rank, fault.kind, fault.factor)
        if fault.kind == "crash":
            self.depart(fault.rank, crashed=True)
        elif fault.kind == "leave":
            self.leaving.add(fault.rank)
        elif fault.kind == "slow":
            self.slowed[fault.rank] = fault.factor
        else:
            self._join(fault.rank)
        self._simulation.scheduler.drain()

    def _recover(self, rank: int) -> None:
        self.slowed.pop(rank, None)
        self._note(rank, "slow", 1.0)

    def _note(self, rank: int, kind: str, factor: float) -> None:
        row = (rank, self._simulation.clock.now, FAULT_KINDS.index(kind), factor)
        self._simulation.trace.rows["faults"].append(row)

    def depart(self, rank: int, *, crashed: bool) -> None:
        """Take a node out, at once; the others notice when the network lets them."""
        simulation = self._simulation
        scheduler, post = simulation.scheduler, simulation.post
        node = scheduler.nodes.get(rank)
        if node is None:
            return
        self.departed.add(rank)
        self.leaving.discard(rank)
        simulation.on_departure(node)
        self._requests[rank] = node.requests
        for task in scheduler.tasks[rank]:
            if isinstance(task.waiting, GradientRequest):
                simulation.cancelled(task, task.waiting)
        post.lost += [(source, rank, message) for source, message in scheduler.remove(rank)]
        post.cut(rank, crashed=crashed)
        life = self._lives.get(rank, 0)
        for other in list(scheduler.nodes):
            noticed = post.noticed_at(rank, other, crashed=crashed)
            simulation.clock.at(noticed, self._notice, (other, rank, life))
        simulation.meetings.lose(rank)

    def _notice(self, who: tuple[int, int, int]) -> None:
        other, rank, life = who
        simulation = self._simulation
        if self._lives.get(rank, 0) != life:
            return  # It is back; the others learnt of its departure with its return.
        again = simulation.post.owed(rank, other)
        if again is not None:
            simulation.clock.at(again, self._notice, who)
            return
        simulation.scheduler.lose(other, rank)
        simulation.scheduler.drain()

    def _join(self, rank: int) -> None:
        """Let a worker in: with the present model, from a round that nobody has begun."""
        simulation = self._simulation
        if rank in simulation.scheduler.nodes:
            self.leaving.discard(rank)  # It is asked back before it has left.
            return
        nodes = simulation.nodes
        try:
            start = simulation.scheduler.method.model(nodes)
        except ModelLost:
            return
        if rank in self.departed:
            self._lives[rank] = self._lives.get(rank, 0) + 1
            for other in nodes:
                simulation.scheduler.lose(other.rank, rank)
            simulation.post.renew(rank)
        workers = [node for node in nodes if not node.is_server]
        servers = [node for node in nodes if node.is_server]
        first = 1 + max((other.round for other in workers), default=-1)
        node = simulation._place(rank, start)
        node.round = first
        node.requests = self._requests.get(rank, 0)
        node.samples = max((other.samples for other in workers), default=0)
        node.departed |= self.departed
        node.first_round.update(nodes[0].first_round)
        if servers:
            node.versions = [server.version for server in servers]
        elif workers:
            node.versions = list(max((other.versions for other in workers), key=min))
        if self._whole_quota is not None:
            self.quota[rank] = node.requests + self._whole_quota - first
        for other in [*nodes, node]:
            other.first_round[rank] = first
            other.departed.discard(rank)
        self.departed.discard(rank)
        simulation.scheduler.begin(node)
