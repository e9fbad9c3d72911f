"""Meetings: collectives that the simulator prices instead of passing their messages."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from torch import Tensor

from ..collectives import Algorithm
from ..node import Node
from ..suspensions import Group, Meet, PeerLost
from ..trace import DELIVERED, Trace
from .clock import VirtualClock
from .errors import RunError
from .network import UniformNetwork
from .post import Post
from .scheduler import Scheduler
from .tasks import Task

Key = tuple[Group, tuple[int, int]]
"""Who meets, and which of their collectives it is."""
Members = dict[int, tuple[Task, Tensor, int]]
"""Who has joined: its task, its values, and when, in nanoseconds."""


class Meetings:
    """Every collective that some members have joined. The last to come sets off its price.

    Where the price holds only for members that come at one instant, those who have come by its
    end pass the messages instead, and so does everyone who comes later.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        clock: VirtualClock,
        scheduler: Scheduler,
        trace: Trace,
        post: Post,
    ) -> None:
        self.algorithm = algorithm
        self.clock = clock
        self.scheduler = scheduler
        self.trace = trace
        self.post = post
        self._open: dict[Key, Members] = {}
        self._passing: dict[Key, int] = {}
        """Collectives that pass their messages, and how many members are yet to come."""

    def reduce(self, node: Node, meet: Meet) -> Awaitable[Tensor]:
        """One member's part."""
        return self._in_step(node, meet) if self.algorithm.in_step else meet

    async def _in_step(self, node: Node, meet: Meet) -> Tensor:
        mean: Any = await meet
        if mean is None:
            return await self.algorithm.run(node, meet.values, meet.group, meet.tag)
        return mean

    def meet(self, task: Task, meet: Meet) -> None:
        key = (meet.group, meet.tag)
        if key in self._passing:
            self._pass_messages(key, [task])
            return
        members = self._open.setdefault(key, {})
        members[task.node.rank] = (task, meet.values, self.clock.now)
        if len(members) == len(meet.group):
            del self._open[key]
            self._reduce(meet.group, [members[rank] for rank in meet.group])
        elif self.algorithm.in_step and len(members) == 1:
            self.clock.at_end_of(self.clock.now, self._instant_over, key)

    def _instant_over(self, key: Key) -> None:
        members = self._open.pop(key, None)
        if members is not None:
            self._passing[key] = len(key[0])
            self._pass_messages(key, [task for task, _, _ in members.values()])
            self.scheduler.drain()

    def _pass_messages(self, key: Key, tasks: list[Task]) -> None:
        self._passing[key] -= len(tasks)
        if self._passing[key] == 0:
            del self._passing[key]
        for task in tasks:
            self.scheduler.resume(task, None)

    def lose(self, rank: int) -> None:
        """A node departs: whoever would meet it does not."""
        for key in [key for key in self._open if rank in key[0]]:
            for task, _, _ in self._open.pop(key).values():
                self.scheduler.resume(task, error=PeerLost(rank))

    def _reduce(self, group: Group, members: list[tuple[Task, Tensor, int]]) -> None:
        values = [value for _, value, _ in members]
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise RunError(
                f"all_reduce over {len(group)} nodes was given different shapes: "
                f"{', '.join(map(str, sorted(shapes)))}"
            )
        mean = self.algorithm.mean(values)
        hosts = [self.post.hosts[rank] for rank in group]
        network = self.post.network
        assert isinstance(network, UniformNetwork), "prices are for lines that are all alike"
        price = self.algorithm.price(network, hosts, [entered for _, _, entered in members], mean)
        self.post.bytes_sent += sum(price.sent)
        kind = self.trace.kind("all_reduce")
        for i, (task, _, entered) in enumerate(members):
            finished = price.finished[i]
            if len(group) > 1:
                to, size = group[price.first_to[i]], price.sent[i]
                self.trace.rows["messages"].append(
                    (group[i], to, kind, size, entered, self.clock.now, finished, DELIVERED)
                )
            self.clock.at(finished, self._ended, (task, mean.clone()))

    def _ended(self, ended: tuple[Task, Tensor]) -> None:
        self.scheduler.resume(*ended)
        self.scheduler.drain()
