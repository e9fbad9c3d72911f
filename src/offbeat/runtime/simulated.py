"""Simulated: one process carries every node under virtual time, repeatable to the bit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..collectives import ALGORITHMS
from ..experiment import Experiment
from ..method import ModelLost
from ..node import Node
from ..parameters import Dense, joined
from ..runs import Metrics, Run
from ..suspensions import Gradient, GradientRequest, Group, Meet, PeerLost, Receive
from ..trace import Trace
from .causes import Cause
from .clock import SECOND, VirtualClock, nanoseconds
from .errors import RunError
from .executor import Executor
from .gradients import Gradients
from .meetings import Meetings
from .membership import Membership
from .post import Post
from .scheduler import Scheduler
from .shared import CommonParameters
from .tasks import Task
from .world import Progress, World, divergence, require_finite

MOST_WAKES = 100_000
"""Sleeps without a gradient in between before a run counts as endless."""


class Deadlock(RunError):
    """Every role waits, and nothing is on its way."""


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
        self.metrics: list[Metrics] = []
        self.steps = 0
        self.computed = 0
        self.last_gradient = 0
        self.stop: str | None = None
        self.on_departure: Callable[[Node], None] = _ignore
        self._progress = progress
        self._initial = initial
        self._granted = 0
        self._refused: set[int] = set()
        self._wakes = 0
        self._allowed = experiment.gradients
        self._waiting_since: dict[int, int] = {}
        self.post = Post(
            cluster,
            self.clock,
            self.scheduler,
            self.trace,
            self.world.hosts,
            self.world.servers,
        )
        self._all_reduce = ALGORITHMS[cluster.all_reduce]
        # A price holds for lines that are all alike.
        self._priced = cluster.collectives == "priced" and cluster.uniform
        self.meetings = Meetings(
            self._all_reduce, self.clock, self.scheduler, self.trace, self.post
        )
        self.membership = Membership(self, cluster, experiment.quota)
        self._interval = experiment.evaluation_interval
        self._next_evaluation = self._interval
        self.gradients = Gradients(self.world)
        nodes = cluster.workers + len(self.world.servers)
        # The parameters of all nodes live in one matrix, of one row if all share them.
        rows = 1 if self.method.shares_parameters else nodes
        self.matrix = self.world.initial.new_empty(rows, self.world.layout.size)
        self._shared = CommonParameters(self.matrix[0]) if self.method.shares_parameters else None

    @property
    def nodes(self) -> list[Node]:
        """The live nodes."""
        return list(self.scheduler.nodes.values())

    @property
    def in_flight(self) -> list[tuple[int, int, Any]]:
        """Messages under way or unread: (source, to, message)."""
        unread = [
            (source, to, message)
            for to, mailbox in self.scheduler.mailboxes.items()
            for source, message in mailbox.unread()
        ]
        return self.post.under_way + unread

    @property
    def lost_messages(self) -> list[tuple[int, int, Any]]:
        """What will never be read: (source, to, message)."""
        return self.post.lost

    @property
    def departed(self) -> set[int]:
        return self.membership.departed

    @property
    def bytes_sent(self) -> int:
        return self.post.bytes_sent

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
            self.gradients.close()
            torch.set_num_threads(threads)
            torch.set_rng_state(generator)
        return self._result(error)

    def begin(self) -> None:
        """Place the nodes and start their roles."""
        cluster = self.experiment.cluster
        for rank in [*self.world.workers, *self.world.servers]:
            if not cluster.begins_absent(rank):
                self._place(rank, self._start_of(rank))
        self.membership.begin()
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
        if self._shared is not None:
            self._shared.vector.copy_(start)  # What a late worker starts from is that vector.
            node = self.world.node(rank, self, start, shared=self._shared)
        else:
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
        if error is None and (error := divergence(self.metrics)) is not None:
            self.stop = "error"
        self.scheduler.close()
        run = Run(
            experiment=self.experiment,
            mode="simulated",
            metrics=self.metrics,
            trace=self.trace,
            vector=vector.clone(),
            layout=self.world.layout,
            buffers=self.world.buffers(vector),
            seconds=self.last_gradient / SECOND,
            stop=self.stop or "finished",
            error=error,
            notes=[*self.world.notes],
            resolved={"evaluator": self.gradients.evaluator},
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
        step, message = self.trace.rows["steps"].last, self.trace.rows["messages"].last
        return max(
            self.last_gradient,
            int(step[1]) if step is not None else 0,
            int(message[6]) if message is not None else 0,
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
        self.post.send(node.rank, to, message)

    def all_reduce(
        self, node: Node, values: Dense, group: Group, tag: tuple[int, int]
    ) -> Awaitable[Tensor]:
        own = joined(values).detach().clone()
        if self._priced:
            return self.meetings.reduce(node, Meet(own, group, tag))
        return self._all_reduce.run(node, own, group, tag)

    # What the scheduler leaves to the runtime

    def request_gradient(self, task: Task, request: GradientRequest) -> None:
        rank = task.node.rank
        if self.stop is not None or self._spent() or request.step >= self.membership.quota[rank]:
            self._refused.add(rank)
            return
        self._wakes = 0
        self._granted += 1
        now = self.clock.now
        seconds = self.gradients.ask(rank, request) * self.membership.slowed.get(rank, 1.0)
        self.clock.at(now + nanoseconds(seconds), self._computed, (task, request, now))

    def cancelled(self, task: Task, request: GradientRequest) -> None:
        self.gradients.drop(request)

    def sleep(self, task: Task, seconds: float) -> None:
        self.clock.at(self.clock.now + nanoseconds(seconds), self._wake, task)

    def next_round(self, task: Task) -> bool:
        rank = task.node.rank
        if rank in self.membership.leaving:
            self.membership.depart(rank, crashed=False)
            return False
        return self.stop is None

    def meet(self, task: Task, meet: Meet) -> None:
        gone = [rank for rank in self.departed if rank in meet.group]
        if gone:
            self.scheduler.resume(task, error=PeerLost(gone[0]))
        else:
            self.meetings.meet(task, meet)

    def waited(self, task: Task) -> None:
        self._waiting_since[task.node.rank] = self.clock.now

    def resumed(self, task: Task, cause: Cause | None) -> None:
        if task.id == 0:
            rank = task.node.rank
            since = self._waiting_since.pop(rank, None)
            if since is not None and since < self.clock.now:
                self.trace.rows["waits"].append((rank, since, self.clock.now))

    # Events

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
        now, rank = self.clock.now, task.node.rank
        job = self.gradients.take(request)
        assert job.vector is not None
        require_finite(job, rank, request.step, now / SECOND)
        self.computed += 1
        self.last_gradient = now
        self.trace.rows["gradients"].append((rank, began, now, job.loss))
        self.scheduler.resume(task, Gradient(job.vector, request.versions, job.loss))
        self.scheduler.drain()
        if self.computed * self._batch >= self._next_evaluation:
            self._evaluate()


def _judged(row: Metrics) -> tuple[float, ...]:
    return row.samples, row.steps, row.bytes, row.loss, row.consensus


def _ignore(node: Node) -> None:
    pass
