"""Replay: a real run again, step by step, in one process, to the bit."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..collectives import algorithm_for
from ..experiment import Experiment
from ..messages import codec_of
from ..method import Method
from ..node import Node
from ..parameters import Dense, Values, joined
from ..runs import Run
from ..suspensions import Gradient, GradientRequest, Group, Meet, PeerLost, Receive
from ..trace import DELIVERED, Trace
from .capture import NodeState, read_state, restore
from .causes import Cause, Kind
from .clock import SECOND
from .compute import SerialEvaluator
from .executor import Executor
from .journal import Entry, JournalError, read_journal, read_machine
from .journal_reader import INSIDE_A_STEP, JournalEnds, Reader
from .scheduler import Scheduler
from .tasks import Task
from .world import World


class ReplayScheduler(Scheduler):
    """Answers nothing by itself: every answer comes from the journals."""

    executor: Replay

    def deliver(self, to: int, source: int, message: Any) -> None:
        self.executor.stash.setdefault((source, to), []).append(message)

    def take(self, task: Task, request: Receive[Any]) -> tuple[int, Any, int] | None:
        reader = self.executor.readers[task.node.rank]
        entry = reader.head
        if entry is None or entry.cause.kind is not Kind.MESSAGE_NOW or entry.task != task.id:
            return None
        return self.executor.message_of(task.node.rank, entry.cause)

    def holds(self, task: Task, message_type: type) -> bool:
        entry = self.executor.readers[task.node.rank].head
        return entry is not None and entry.cause.kind is Kind.CANCELLED_NOW


class Replay(Executor):
    """All nodes of a recorded run, each following its journal as far as the others let it.

    Args:
        method: the run's.
        journals: the folder of its journals.
        gradient: gives the gradient (d,) and loss that answer a request.
        settings: the optimizers' hyper-parameters at each of their changes.
        all_reduce: the algorithm of collectives, of `offbeat.collectives.ALGORITHMS`.
    """

    def __init__(
        self,
        method: Method,
        journals: Path,
        gradient: Callable[[Node, GradientRequest], tuple[Values, float]],
        settings: Callable[[Node, int], Sequence[Mapping[str, Any]]] | None = None,
        all_reduce: str = "ring",
    ) -> None:
        self.trace = Trace()
        self.stash: dict[tuple[int, int], list[Any]] = {}
        self.readers: dict[int, Reader] = {}
        self.scheduler = ReplayScheduler(self, method)
        self.steps = 0
        self.computed = 0
        self.bytes_sent = 0
        self._journals = journals
        self._gradient = gradient
        self._settings = settings
        self._all_reduce = all_reduce
        self._machines: dict[int, int] = {}
        self._time: dict[int, int] = {}

    def add(self, node: Node) -> None:
        """Take a node in, and read its journal."""
        path = self._journals / f"node-{node.rank}.journal"
        if not path.exists():
            raise JournalError(f"{path} is missing; only real runs leave journals")
        self.readers[node.rank] = Reader(node.rank, read_journal(path))
        self._machines[node.rank] = read_machine(path)
        self.scheduler.add(node)
        saved = path.with_suffix(".safetensors")
        if saved.exists():
            self._restore(read_state(saved.read_bytes()))

    def _restore(self, state: NodeState) -> None:
        """Let a node begin as it did when the run was resumed."""
        restore(self.scheduler, state)
        for source, count in state.received.items():
            self.stash[source, state.rank] = [None] * count
        for source, number, message in state.unread:
            self.stash[source, state.rank][number] = message

    def follow(self) -> None:
        """Follow every journal to its end."""
        moved = True
        while moved:
            moved = False
            for reader in self.readers.values():
                moved |= self._advance(reader)
        for reader in self.readers.values():
            if reader.head is not None and not self._is_gone(reader.rank):
                raise JournalError(
                    f"the journal of node {reader.rank} cannot be followed beyond entry "
                    f"{reader.position} of {len(reader.entries)}: a message from node "
                    f"{reader.head.cause.source} never comes"
                )

    @property
    def survivors(self) -> list[Node]:
        """The nodes that nobody saw depart."""
        nodes = self.scheduler.nodes.values()
        return [node for node in nodes if not self._is_gone(node.rank)]

    def model(self) -> Tensor:
        """The parameters (d,) that the survivors stand for."""
        return self.scheduler.method.model(self.survivors)

    def _is_gone(self, rank: int) -> bool:
        return any(
            rank in node.departed for node in self.scheduler.nodes.values() if node.rank != rank
        )

    def _advance(self, reader: Reader) -> bool:
        """Follow one journal as far as it goes; whether it went anywhere."""
        moved = False
        if not reader.begun and self._available(reader):
            reader.begun = moved = True
            self._time[reader.rank] = 0
            self.scheduler.begin(self.scheduler.nodes[reader.rank])
            self.scheduler.drain()
        if not reader.begun:
            return False
        while reader.head is not None and self._available(reader):
            try:
                self._follow(reader, reader.head)
            except JournalEnds:
                if not self._was_lost(reader.rank):
                    raise
            moved = True
        return moved

    def _was_lost(self, rank: int) -> bool:
        """Whether any journal tells of that node's departure."""
        return any(
            entry.cause.kind is Kind.DEPARTURE and entry.cause.source == rank
            for reader in self.readers.values()
            for entry in reader.entries
        )

    def _available(self, reader: Reader) -> bool:
        return all(
            len(self.stash.get((cause.source, reader.rank), ())) > cause.sequence
            for cause in reader.needs()
        )

    def _follow(self, reader: Reader, entry: Entry) -> None:
        rank, cause = reader.rank, entry.cause
        self._time[rank] = entry.time
        node = self.scheduler.nodes[rank]
        if cause.kind is Kind.DEPARTURE:
            reader.position += 1
            node.departed.add(cause.source)
            if cause.sequence >= 0:
                node.rounds_of[cause.source] = cause.sequence
            return
        if cause.kind is Kind.RETUNED and self._settings is not None:
            reader.position += 1
            node.optimizer.retune(self._settings(node, cause.sequence))
            return
        task = next((t for t in self.scheduler.tasks[rank] if t.id == entry.task), None)
        if task is None or cause.kind in INSIDE_A_STEP:
            reader.take(entry.task, Kind.GRADIENT)
            return
        request = task.waiting
        if cause.kind is Kind.GRADIENT:
            reader.take(entry.task, Kind.GRADIENT)
            if not isinstance(request, GradientRequest):
                reader.position -= 1
                reader.take(entry.task, Kind.MESSAGE)
                return
            vector, loss = self._gradient(node, request)
            self.computed += 1
            self.trace.rows["gradients"].append((rank, entry.time, entry.time, loss))
            self.scheduler.resume(task, Gradient(vector, request.versions, loss))
        elif cause.kind is Kind.MESSAGE:
            reader.position += 1
            source, message, _ = self.message_of(rank, cause)
            self._forget(task)
            self.scheduler.answer(task, source, message)
        elif cause.kind is Kind.LOST:
            reader.position += 1
            self._forget(task)
            self.scheduler.resume(task, error=PeerLost(cause.source))
        else:
            reader.position += 1
            self.scheduler.resume(task)
        self.scheduler.drain()

    def message_of(self, rank: int, cause: Cause) -> tuple[int, Any, int]:
        messages = self.stash[cause.source, rank]
        message, messages[cause.sequence] = messages[cause.sequence], None
        size, kind = codec_of(type(message)).size(message), self.trace.kind(type(message).__name__)
        row = (cause.source, rank, kind, size, 0, 0, self._time[rank], DELIVERED)
        self.trace.rows["messages"].append(row)
        return cause.source, message, cause.sequence

    def _forget(self, task: Task) -> None:
        receivers = self.scheduler._receivers[task.node.rank]
        if task in receivers:
            receivers.remove(task)

    # What nodes ask

    def now(self, node: Node) -> float:
        return self.readers[node.rank].take(None, Kind.CLOCK).time / SECOND

    def start(self, node: Node, name: str, coroutine: Coroutine[Any, Any, Any]) -> Task:
        return self.scheduler.start(node, name, coroutine)

    def poll(self, node: Node, wanted: Receive[Any]) -> tuple[int, Any] | None:
        cause = self.readers[node.rank].take(None, Kind.POLL).cause
        return None if cause.sequence < 0 else self.message_of(node.rank, cause)[:2]

    def stepped(self, node: Node, staleness: int, mixes: int) -> None:
        self.steps += 1
        self.trace.rows["steps"].append(
            (node.rank, self._time[node.rank], node.versions[0], staleness, mixes)
        )

    def send(self, node: Node, to: int, message: Any) -> None:
        codec = codec_of(type(message))
        self.bytes_sent += codec.size(message)
        self.scheduler.deliver(to, node.rank, codec.copy(message))

    def all_reduce(
        self, node: Node, values: Dense, group: Group, tag: tuple[int, int]
    ) -> Awaitable[Tensor]:
        on_one_machine = len({self._machines[rank] for rank in group}) == 1
        algorithm = algorithm_for(self._all_reduce, on_one_machine)
        return algorithm.run(node, joined(values).detach().clone(), group, tag)

    # What the scheduler leaves to the runtime

    def request_gradient(self, task: Task, request: GradientRequest) -> None:
        """Answered when the journal says so."""
        request.snapshot = request.snapshot.clone()

    def sleep(self, task: Task, seconds: float) -> None:
        """Over when the journal says so."""

    def meet(self, task: Task, meet: Meet) -> None:
        raise JournalError("a recorded run carries collectives out as messages")

    def next_round(self, task: Task) -> bool:
        reader = self.readers[task.node.rank]
        entry = reader.head
        held = (Kind.PARKED, Kind.PAUSED)
        if entry is None or entry.cause.kind not in held or entry.task != task.id:
            return True
        reader.position += 1
        return False

    def resumed(self, task: Task, cause: Cause | None) -> None:
        at_once = (Kind.MESSAGE_NOW, Kind.LOST_NOW, Kind.CANCELLED_NOW)
        if cause is not None and cause.kind in at_once:
            self.readers[task.node.rank].take(task.id, cause.kind)


def replay_run(experiment: Experiment, journals: Path) -> Run:
    """Run a recorded real run again in this process; its final model has the same bits.

    Raises:
        JournalError: a journal is missing, damaged, or of another experiment.
    """
    world = World(experiment)
    evaluator = SerialEvaluator(world.make_module(), world.problem.loss, world.data.train)

    def computed(node: Node, request: GradientRequest) -> tuple[Values, float]:
        job = world.job(node.rank, request)
        evaluator.evaluate_one(job)
        assert job.vector is not None
        return job.vector, job.loss

    replay = Replay(experiment.method, journals, computed, all_reduce=experiment.cluster.all_reduce)
    threads = torch.get_num_threads()
    torch.set_num_threads(experiment.threads)
    began = time.perf_counter()
    try:
        for rank in [*world.workers, *world.servers]:
            replay.add(world.node(rank, replay, world.initial))
        replay.follow()
    finally:
        torch.set_num_threads(threads)
    seconds = float(replay.trace.gradients["end_ns"].max(initial=0)) / SECOND
    samples = replay.computed * experiment.problem.batch_size
    vector = replay.model().clone()
    row = world.measure(replay.survivors, seconds, samples, replay.steps, replay.bytes_sent)
    replay.scheduler.close()
    return Run(
        experiment=experiment,
        mode="replay",
        metrics=[row],
        trace=replay.trace,
        vector=vector,
        layout=world.layout,
        buffers=world.buffers(vector),
        seconds=seconds,
        stop="journal",
        notes=[*world.notes, f"replayed in {time.perf_counter() - began:.2f} s"],
    )
