"""Simulated: one process carries every node under virtual time, repeatable to the bit."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cluster import Fault
from ..collectives import Chunk, chunk_bounds, ring_all_reduce, ring_mean
from ..experiment import Experiment
from ..message import codec_of
from ..method import ModelLost
from ..node import Gradient, GradientRequest, Group, Meet, Node, PeerLost, Receive
from ..run import Metrics, Run
from ..trace import DELIVERED, FAULT_KINDS, LOST, Trace
from .clock import SECOND, VirtualClock, nanoseconds
from .compute import (
    Evaluator,
    Job,
    PoolEvaluator,
    SerialEvaluator,
    VmapEvaluator,
    choose_evaluator,
    programs_of,
    require_repeatable,
)
from .network import ModelledNetwork
from .scheduler import Executor, RunError, Scheduler, Task
from .world import Progress, World, require_finite

NEVER = 1 << 62
MOST_WAKES = 100_000
"""Sleeps without a gradient in between before a run counts as endless."""


class Deadlock(RunError):
    """Every role waits, and nothing is on its way."""


class Link:
    """Messages on their way between two nodes, first in, first out."""

    __slots__ = ("broken", "last", "queue")

    def __init__(self) -> None:
        self.queue: deque[tuple[int, int, Any, int, int, int]] = deque()
        self.last = 0
        self.broken = False


class Meeting:
    """A collective that not all members have joined yet."""

    def __init__(self) -> None:
        self.members: dict[int, tuple[Task, Tensor, int]] = {}


class Simulation(Executor):
    """One experiment under virtual time; `run()` carries it out.

    `progress` is called at each evaluation.
    """

    def __init__(
        self,
        experiment: Experiment,
        progress: Progress | None = None,
        initial: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.experiment = experiment
        self.world = World(experiment)
        self.method = experiment.method
        self.scheduler = Scheduler(self, self.method)
        self.trace = Trace()
        cluster = experiment.cluster
        self.clock = VirtualClock(experiment.seed)
        self.hosts = self.world.hosts
        self.network = ModelledNetwork(self.world.host_count(), cluster.latency, cluster.bandwidth)
        self.metrics: list[Metrics] = []
        self.steps = 0
        self.bytes_sent = 0
        self.computed = 0
        self.last_gradient = 0
        self.stop: str | None = None
        self.departed: set[int] = set()
        self.lost_messages: list[tuple[int, int, Any]] = []
        self.on_departure: Callable[[Node], None] = _ignore
        self._progress = progress
        self._initial = initial
        self._granted = 0
        self._refused: set[int] = set()
        self._wakes = 0
        self._allowed = experiment.gradients
        self._links: dict[tuple[int, int], Link] = {}
        self._meetings: dict[tuple[Group, tuple[int, int]], Meeting] = {}
        self._jobs: dict[GradientRequest, Job] = {}
        self._waiting_since: dict[int, int] = {}
        self._leaving: set[int] = set()
        self._slowed: dict[int, float] = {}
        self._compute_times = [
            cluster.compute_times(rank, experiment.seed) for rank in self.world.workers
        ]
        quota = experiment.quota
        self._quota = [NEVER if quota is None else quota] * cluster.workers
        self._priced = cluster.collectives == "priced"
        self._interval = experiment.evaluation_interval
        self._next_evaluation = self._interval
        self.evaluator = experiment.evaluator
        if self.evaluator == "auto":
            self.evaluator = choose_evaluator(self.world.module, cluster.workers)
        require_repeatable(self.evaluator, self.world.module)
        self._evaluator = self._make_evaluator()
        nodes = cluster.workers + len(self.world.servers)
        # The parameters of all nodes live in one matrix.
        self.matrix = self.world.initial.new_empty(nodes, self.world.layout.size)

    @property
    def nodes(self) -> list[Node]:
        """The live nodes."""
        return list(self.scheduler.nodes.values())

    @property
    def in_flight(self) -> list[tuple[int, int, Any]]:
        """Messages under way or unread: (source, to, message)."""
        under_way = [
            (source, to, message)
            for link in self._links.values()
            for source, to, message, *_ in link.queue
        ]
        unread = [
            (source, to, message)
            for to, mailbox in self.scheduler.mailboxes.items()
            for source, message in mailbox.unread()
        ]
        return under_way + unread

    def _make_evaluator(self) -> Evaluator:
        world = self.world
        loss, train = world.problem.loss, world.data.train
        if self.evaluator == "vmap":
            programs = programs_of(world.problem, self.experiment.seed)
            return VmapEvaluator(world.make_module(), loss, train, programs)
        if self.evaluator == "pool":
            return PoolEvaluator(world.make_module, loss, train, os.cpu_count() or 1)
        return SerialEvaluator(world.make_module(), loss, train)

    # The run

    def run(self) -> Run:
        """Carry the experiment out. A run that ends badly keeps what it recorded, and says why."""
        threads, generator = torch.get_num_threads(), torch.get_rng_state()
        torch.set_num_threads(self.experiment.threads)
        error: str | None = None
        try:
            self.begin()
            while self.step():
                pass
            self._require_progress()
        except RunError as failure:
            error, self.stop = str(failure), "error"
        except KeyboardInterrupt:
            self.stop = "interrupted"
        except BaseException:
            self.scheduler.close()
            raise
        finally:
            self._evaluator.close()
            torch.set_num_threads(threads)
            torch.set_rng_state(generator)
        return self._result(error)

    def begin(self) -> None:
        """Place the nodes and start their roles."""
        cluster = self.experiment.cluster
        late = {f.rank: f for f in cluster.faults if f.kind == "join"}
        for rank in [*self.world.workers, *self.world.servers]:
            if rank not in late:
                self._place(rank, self._start_of(rank))
        for node in self.nodes:
            node.first_round.update(dict.fromkeys(late, NEVER))
        for fault in cluster.faults:
            self.clock.at(nanoseconds(fault.at), self._befall, fault)
            if fault.kind == "slow" and fault.until < float("inf"):
                self.clock.at(nanoseconds(fault.until), self._recover, fault.rank)
        if self.experiment.budget.seconds is not None:
            self.clock.at(nanoseconds(self.experiment.budget.seconds), self._time_is_up, None)
        for node in self.nodes:
            self.scheduler.begin(node)
        self._evaluate()
        self.scheduler.drain()

    def step(self) -> bool:
        """Carry out the next event; False when nothing is left to happen."""
        if self.stop in ("error", "interrupted"):
            return False
        return self.clock.advance()

    def _start_of(self, rank: int) -> Tensor:
        return self.world.initial if self._initial is None else self._initial(rank)

    def _place(self, rank: int, start: Tensor) -> Node:
        size = self.world.layout.size
        if rank in self.world.servers:
            size = self.world.server_layouts[rank - self.world.servers.start].size
        node = self.world.node(rank, self, start, storage=self.matrix[rank, :size])
        self.scheduler.add(node)
        return node

    def _require_progress(self) -> None:
        """Nothing is left to happen: fine if the budget is spent, else a deadlock."""
        if self.stop is not None:
            return
        waiting = self.scheduler.waiting()
        asking = [task for task in waiting if isinstance(task.waiting, GradientRequest)]
        if asking or self._spent():
            # Each worker of a synchronous method has its share, and none needs another any more.
            stuck = [task for task in waiting if task.id == 0 and not task.node.is_server]
            if self.method.synchronous and len(stuck) > len(asking):
                raise Deadlock(self._deadlock(waiting))
            self.stop = "samples"
            return
        if not waiting:
            self.stop = "finished"
            return
        raise Deadlock(self._deadlock(waiting))

    def _deadlock(self, waiting: list[Task]) -> str:
        waits = "; ".join(task.describe() for task in waiting[:8])
        more = "" if len(waiting) <= 8 else f"; and {len(waiting) - 8} more"
        since = max(self._waiting_since.values(), default=self.clock.now)
        return (
            f"deadlock at {since / SECOND:.6g} s: every role waits and no message is "
            f"on its way: {waits}{more}"
        )

    def _live_workers(self) -> list[int]:
        return [rank for rank in self.scheduler.nodes if rank in self.world.workers]

    def _spent(self) -> bool:
        return self._granted >= self._allowed

    def _result(self, error: str | None) -> Run:
        nodes = self.nodes
        vector = self.world.initial
        with suppress(ModelLost):
            vector = self.method.model(nodes)
        self._evaluate(self._last_change)
        self.scheduler.close()
        run = Run(
            experiment=self.experiment,
            mode="simulated",
            metrics=self.metrics,
            trace=self.trace,
            vector=vector.clone(),
            layout=self.world.layout,
            seconds=self.last_gradient / SECOND,
            stop=self.stop or "finished",
            error=error,
            resolved={"evaluator": self.evaluator},
        )
        for rank in sorted(self.departed):
            run.notes.append(f"node {rank} departed; the others went on")
        return run

    @property
    def _batch(self) -> int:
        return self.world.problem.batch_size

    @property
    def _last_change(self) -> int:
        """When a gradient was computed or applied last, or a message arrived."""
        steps, messages = self.trace.rows["steps"], self.trace.rows["messages"]
        return max(
            self.last_gradient,
            int(steps[-1][1]) if steps else 0,
            int(messages[-1][6]) if messages else 0,
        )

    def _evaluate(self, now: int | None = None) -> None:
        seconds = (self.clock.now if now is None else now) / SECOND
        samples = self.computed * self._batch
        try:
            row = self.world.measure(self.nodes, seconds, samples, self.steps, self.bytes_sent)
        except ModelLost:
            return
        if self.metrics and _judged(self.metrics[-1]) == _judged(row):
            return
        self.metrics.append(row)
        self._next_evaluation = samples + self._interval
        if self._progress is not None:
            self._progress(row)
        goal = self.experiment.budget.accuracy
        if goal is not None and row.accuracy >= goal:
            self._end("accuracy")

    def _time_is_up(self, _: None) -> None:
        if self.clock.idle:
            # Everything had come to rest before.
            self._require_progress()
        self._end("seconds")

    def _end(self, why: str) -> None:
        if self.stop is None:
            self.stop = why

    # What nodes ask

    def now(self, node: Node) -> float:
        return self.clock.now / SECOND

    def start(self, node: Node, name: str, coroutine: Coroutine[Any, Any, Any]) -> Task:
        return self.scheduler.start(node, name, coroutine)

    def poll(self, node: Node, wanted: Receive[Any]) -> tuple[int, Any] | None:
        found = self.scheduler.poll(node, wanted)
        return None if found is None else (found[0], found[1])

    def stepped(self, node: Node, staleness: int, mixes: int) -> None:
        self.steps += 1
        self.trace.rows["steps"].append(
            (node.rank, self.clock.now, node.versions[0], staleness, mixes)
        )

    def send(self, node: Node, to: int, message: Any) -> None:
        if not 0 <= to < len(self.hosts):
            raise ValueError(f"there is no node {to}; nodes are 0 to {len(self.hosts) - 1}")
        codec = codec_of(type(message))
        message = codec.copy(message)
        size, now, source = codec.size(message), self.clock.now, node.rank
        here, there = self.hosts[source], self.hosts[to]
        begin, arrival = self.network.transfer(here, there, size, now)
        if here != there:
            self.bytes_sent += size
        link = self._links.get((source, to))
        if link is None:
            link = self._links[source, to] = Link()
        link.queue.append((source, to, message, size, now, begin))
        link.last = arrival
        self.clock.at(arrival, self._arrive, link)

    def all_reduce(
        self, node: Node, values: Tensor, group: Group, tag: tuple[int, int]
    ) -> Awaitable[Tensor]:
        if self._priced:
            return Meet(values.detach().clone(), group, tag)
        return ring_all_reduce(node, values, group, tag)

    # What the scheduler leaves to the runtime

    def request_gradient(self, task: Task, request: GradientRequest) -> None:
        rank = task.node.rank
        if self.stop is not None or self._spent() or request.step >= self._quota[rank]:
            self._refused.add(rank)
            return
        self._wakes = 0
        self._granted += 1
        now = self.clock.now
        # Fixed from here on: the evaluator may compute it now, or with others, or when it is due.
        job = self._jobs[request] = self.world.job(rank, request)
        self._evaluator.ask(job)
        seconds = next(self._compute_times[rank])
        if self._slowed:
            seconds *= self._slowed.get(rank, 1.0)
        self.clock.at(now + nanoseconds(seconds), self._computed, (task, request, now))

    def cancelled(self, task: Task, request: GradientRequest) -> None:
        job = self._jobs.pop(request, None)
        if job is not None:
            self._evaluator.drop(job)

    def sleep(self, task: Task, seconds: float) -> None:
        self.clock.at(self.clock.now + nanoseconds(seconds), self._wake, task)

    def next_round(self, task: Task) -> bool:
        rank = task.node.rank
        if rank in self._leaving:
            self._depart(rank, crashed=False)
            return False
        return self.stop is None

    def meet(self, task: Task, meet: Meet) -> None:
        rank = task.node.rank
        gone = [rank for rank in self.departed if rank in meet.group]
        if gone:
            self.scheduler.resume(task, error=PeerLost(gone[0]))
            return
        key = (meet.group, meet.tag)
        meeting = self._meetings.setdefault(key, Meeting())
        meeting.members[rank] = (task, meet.values, self.clock.now)
        if len(meeting.members) == len(meet.group):
            del self._meetings[key]
            self._reduce(meet.group, [meeting.members[member] for member in meet.group])

    def waited(self, task: Task) -> None:
        self._waiting_since[task.node.rank] = self.clock.now

    def continued(self, task: Task) -> None:
        rank = task.node.rank
        since = self._waiting_since.pop(rank, None)
        if since is not None and since < self.clock.now:
            self.trace.rows["waits"].append((rank, since, self.clock.now))

    def _reduce(self, group: Group, members: list[tuple[Task, Tensor, int]]) -> None:
        values = [value for _, value, _ in members]
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise RunError(
                f"all_reduce over {len(group)} nodes was given different shapes: "
                f"{', '.join(map(str, sorted(shapes)))}"
            )
        mean = ring_mean(values)
        entered = np.array([when for _, _, when in members], np.int64)
        bounds = chunk_bounds(mean.numel(), len(group))
        overhead = codec_of(Chunk).size(Chunk(mean.reshape(-1)[:0], 0, 0))
        sizes = [overhead + (end - start) * mean.element_size() for start, end in pairwise(bounds)]
        finished, sent = self.network.ring([self.hosts[rank] for rank in group], entered, sizes)
        self.bytes_sent += sent
        kind = self.trace.kind("all_reduce")
        for index, (rank, (task, _, when)) in enumerate(zip(group, members, strict=True)):
            done = int(finished[index])
            following = group[(index + 1) % len(group)]
            if len(group) > 1:
                self.trace.rows["messages"].append(
                    (
                        rank,
                        following,
                        kind,
                        sent // len(group),
                        when,
                        self.clock.now,
                        done,
                        DELIVERED,
                    )
                )
            self.clock.at(done, self._meeting_ended, (task, mean.clone()))

    # Events

    def _meeting_ended(self, ended: tuple[Task, Tensor]) -> None:
        self.scheduler.resume(*ended)
        self.scheduler.drain()

    def _wake(self, task: Task) -> None:
        all_refused = self._refused and self._refused.issuperset(self._live_workers())
        if self.stop is not None or all_refused:
            return  # No worker may go on, so nothing is left to wake for.
        self._wakes += 1
        if self._wakes > MOST_WAKES:
            raise RunError(
                f"{type(self.method).__name__} has slept {MOST_WAKES:,} times since it last asked "
                "for a gradient, so its budget of samples is never spent; give budget.seconds"
            )
        self.scheduler.resume(task)
        self.scheduler.drain()

    def _computed(self, asked: tuple[Task, GradientRequest, int]) -> None:
        task, request, began = asked
        if task.waiting is not request or self.stop == "seconds":
            return
        job, now, rank = self._jobs.pop(request), self.clock.now, task.node.rank
        self._evaluator.answer(job)
        assert job.vector is not None
        require_finite(job.loss, rank, request.step, now / SECOND)
        self.computed += 1
        self.last_gradient = now
        self.trace.rows["gradients"].append((rank, began, now, job.loss))
        self.scheduler.resume(task, Gradient(job.vector, request.versions, job.loss))
        self.scheduler.drain()
        if self.computed * self._batch >= self._next_evaluation:
            self._evaluate()

    def _arrive(self, link: Link) -> None:
        source, to, message, size, sent, begin = link.queue.popleft()
        now = self.clock.now
        arrives = to in self.scheduler.nodes and not link.broken
        name = type(message).__name__
        self.trace.rows["messages"].append(
            (source, to, self.trace.kind(name), size, sent, begin, now,
             DELIVERED if arrives else LOST)
        )  # fmt: skip
        if not arrives:
            self.lost_messages.append((source, to, message))
            return
        self.scheduler.deliver(to, source, message)
        self.scheduler.drain()

    def _befall(self, fault: Fault) -> None:
        self._note_fault(fault.rank, fault.kind, fault.factor)
        if fault.kind == "crash":
            self._depart(fault.rank, crashed=True)
        elif fault.kind == "leave":
            self._leaving.add(fault.rank)
        elif fault.kind == "slow":
            self._slowed[fault.rank] = fault.factor
        else:
            self._join(fault.rank)
        self.scheduler.drain()

    def _recover(self, rank: int) -> None:
        self._slowed.pop(rank, None)
        self._note_fault(rank, "slow", 1.0)

    def _note_fault(self, rank: int, kind: str, factor: float) -> None:
        number = FAULT_KINDS.index(kind)
        self.trace.rows["faults"].append((rank, self.clock.now, number, factor))

    def _depart(self, rank: int, *, crashed: bool) -> None:
        node = self.scheduler.nodes.get(rank)
        if node is None:
            return
        self.departed.add(rank)
        self._leaving.discard(rank)
        self.on_departure(node)
        for task in self.scheduler.tasks[rank]:
            if isinstance(task.waiting, GradientRequest):
                self.cancelled(task, task.waiting)
        unread = self.scheduler.remove(rank)
        self.lost_messages += [(source, rank, message) for source, message in unread]
        now = self.clock.now
        for other in list(self.scheduler.nodes):
            link = self._links.get((rank, other))
            if crashed and link is not None:
                # What has not arrived when its sender crashes never will.
                link.broken = True
            last = now if link is None or crashed else link.last
            # After the last message, which may arrive at that very instant.
            noticed = max(now + self.network.latency, last + 1)
            self.clock.at(noticed, self._notice, (other, rank))
        for (group, _), meeting in self._meetings.items():
            if rank in group:
                for task, _, _ in meeting.members.values():
                    self.scheduler.resume(task, error=PeerLost(rank))

    def _notice(self, who: tuple[int, int]) -> None:
        self.scheduler.lose(*who)
        self.scheduler.drain()

    def _join(self, rank: int) -> None:
        """Let a late worker in: with the present model, from a round that nobody has begun."""
        if rank in self.scheduler.nodes:
            return
        nodes = self.nodes
        try:
            start = self.method.model(nodes)
        except ModelLost:
            return
        workers = [node for node in nodes if not node.is_server]
        servers = [node for node in nodes if node.is_server]
        first = 1 + max((other.round for other in workers), default=-1)
        node = self._place(rank, start)
        node.round = first
        node.samples = max((other.samples for other in workers), default=0)
        node.departed |= self.departed
        node.first_round.update(nodes[0].first_round)
        if servers:
            node.versions = [server.version for server in servers]
        else:
            node.versions = list(max((other.versions for other in workers), key=min))
        if self._quota[rank] < NEVER:
            self._quota[rank] -= first
        for other in [*nodes, node]:
            other.first_round[rank] = first
            other.departed.discard(rank)
        self.departed.discard(rank)
        self.scheduler.begin(node)


def _judged(row: Metrics) -> tuple[float, ...]:
    return row.samples, row.steps, row.bytes, row.loss, row.consensus


def _ignore(node: Node) -> None:
    pass
