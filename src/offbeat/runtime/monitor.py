"""Monitor: the nodes of one process under one lock, what they ask, and what arrives for them.

The thread that computes gradients steps the roles that they answer; the transport's thread steps
the roles that messages answer; both hold the lock while they do.
"""

from __future__ import annotations

import heapq
import struct
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..collectives import SHARED, algorithm_for, sharded_step, shared_all_reduce
from ..cores import cores_here
from ..messages import codec_of, unpack
from ..method import Method
from ..node import Node
from ..parameters import Dense, joined
from ..suspensions import Gradient, GradientRequest, Group, Meet, Receive
from ..trace import DELIVERED, FAULT_KINDS, LOST
from .causes import WOKEN, Cause, Kind
from .changed import Changed
from .clock import SECOND, nanoseconds
from .control import COORDINATOR
from .errors import RunError
from .executor import Executor
from .huge_pages import HugePages
from .records import Records
from .scheduler import Scheduler
from .slots import SHARED_FROM
from .stitching import padding
from .tasks import Task
from .tls import TLS
from .transport import Transport

Watch = Callable[[Node, Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]]
_ENVELOPE = struct.Struct("<IIq")
_NO_NODE = 0xFFFF_FFFF
"""In place of a node: for the receiving host itself."""


class Monitor(Executor):
    """The nodes of one process.

    Args:
        placement: the host of each node.
        index: this host.
        may_compute: asked at each gradient request, with the node and its request; a request that
            it refuses is never answered.
        journals: a folder in which each node's journal is kept; none if not given.
        traces: whether a trace is kept.
        on_failure: told what ended a role, from whichever thread it happened in.
        on_word: told, under the lock, what another host told this one by `tell`.
        all_reduce: the algorithm of collectives, of `offbeat.collectives.ALGORITHMS`.
        machines: the machine of each host, by any number; all are on one if not given.
        watch: wraps every coroutine that begins on a node here (`offbeat.testing.chaos`).
        tls: certificates, for connections between machines; they are not encrypted if None.
        returns: whether a host that is lost, with these nodes, comes back; then nobody here
            learns of its loss.
        on_order: told, in the transport's thread, what the run's coordinator says.
        on_orphaned: told, in the transport's thread, that the coordinator is gone.
    """

    def __init__(
        self,
        method: Method,
        placement: Sequence[int],
        index: int,
        *,
        listen: str | Sequence[str],
        secret: bytes,
        may_compute: Callable[[Node, GradientRequest], bool],
        on_failure: Callable[[BaseException], None],
        on_tick: Callable[[], None] | None = None,
        journals: Path | None = None,
        traces: bool = True,
        on_word: Callable[[int, Any], None] = lambda host, message: None,
        all_reduce: str = "ring",
        machines: Sequence[int] | None = None,
        watch: Watch | None = None,
        tls: TLS | None = None,
        returns: Callable[[Sequence[int]], bool] = lambda ranks: False,
        on_order: Callable[[memoryview], None] = lambda payload: None,
        on_orphaned: Callable[[], object] = lambda: None,
    ) -> None:
        self.index = index
        self.placement = placement
        self.scheduler = Scheduler(self, method)
        self.records = Records(journals, traces=traces)
        self.lock = threading.RLock()
        self.changed = Changed(self.lock)
        self.requests: deque[tuple[Task, GradientRequest]] = deque()
        self.parked: list[Task] = []
        self.paused: list[Task] = []
        """Workers that wait between two rounds for `proceed`."""
        self.heard: dict[int, deque[Any]] = {}
        """What other hosts have told this one, beside all nodes and journals."""
        self.leaving = False
        self.stopped = False
        self.finished = False
        self.failure: BaseException | None = None
        self.computing: int | None = None
        self.departed: set[int] = set()
        self._may_compute = may_compute
        self._on_failure = on_failure
        self._on_word = on_word
        self._all_reduce = all_reduce
        self.machines = [0] * (max(placement) + 1) if machines is None else machines
        self._watch = watch
        self._returns = returns
        self._on_order, self._on_orphaned = on_order, on_orphaned
        self._timers: list[tuple[int, int, Task]] = []
        self._running = False
        self._pause_at: int | dict[int, int] | None = None
        self._order = 0
        self._early: list[tuple[int, int, Any, int]] = []
        self._tick = on_tick
        self._when_whole: list[Callable[[], None]] = []
        self._pages: HugePages | None = None
        self.transport = Transport(
            index,
            listen,
            secret,
            self._on_frame,
            self._on_lost,
            on_error=self.fail,
            on_tick=self._on_tick,
            tick=0.02,
            tls=tls,
        )
        self.locate(self.machines)

    def locate(self, machines: Sequence[int]) -> None:
        """Learn the machine of each host, by any number."""
        self.machines = machines
        here = len({h for h in self.placement if machines[h] == machines[self.index]})
        if self._pages is None:
            self._pages = HugePages.of_one_of(here)
        # With fewer cores it would be somebody else's time.
        self.transport.spins = here <= cores_here()

    def fail(self, error: BaseException) -> None:
        """End this host's part: a role failed or the transport did."""
        with self.lock:
            if self.failure is not None or self.finished:
                return
            self.failure = error
            self.changed.notify_all()
        self.transport.wake()
        self._on_failure(error)

    def _drain(self) -> None:
        try:
            self.scheduler.drain()
            changed = self.transport.pool.changed_after_send()
            if changed is not None:
                raise RunError(f"{type(self.scheduler.method).__name__}: {changed}")
        except RunError as error:
            self.fail(error)
        if self.requests:
            self.changed.notify_all()
        if self._when_whole:
            self._call_if_whole()

    @property
    def is_whole(self) -> bool:
        """Whether no other process may be changing parameters of nodes here."""
        nodes = self.scheduler.nodes.values()
        return not any(node.in_step and node.part is not None for node in nodes)

    def _call_if_whole(self) -> None:
        while self._when_whole and self.is_whole:
            self._when_whole.pop(0)()

    @property
    def elapsed(self) -> int:
        """Nanoseconds since the run began."""
        return time.monotonic_ns() - self.records.began

    def _has_ended(self) -> bool:
        return self.finished or self.failure is not None

    def tell(self, host: int, message: Any) -> None:
        """Send a message to another host itself."""
        packed, *tensors = codec_of(type(message)).parts(message)
        envelope = _ENVELOPE.pack(self.index, _NO_NODE, self.elapsed)
        self.transport.send(host, envelope + packed, *tensors)

    # What nodes ask

    def now(self, node: Node) -> float:
        elapsed = self.elapsed
        self.records.note(node.rank, 0, Cause(Kind.CLOCK), elapsed)
        return elapsed / SECOND

    def start(self, node: Node, name: str, coroutine: Coroutine[Any, Any, Any]) -> Task:
        return self.scheduler.start(node, name, coroutine)

    def poll(self, node: Node, wanted: Receive[Any]) -> tuple[int, Any] | None:
        found = self.scheduler.poll(node, wanted)
        if found is not None:
            self.scheduler.acted()
        cause = Cause(Kind.POLL) if found is None else Cause(Kind.POLL, found[0], found[2])
        self.records.note(node.rank, 0, cause)
        return None if found is None else (found[0], found[1])

    def stepped(self, node: Node, staleness: int, mixes: int) -> None:
        self.records.step(node, staleness, mixes)

    def send(self, node: Node, to: int, message: Any) -> None:
        self.scheduler.acted()
        if not 0 <= to < len(self.placement):
            raise ValueError(f"there is no node {to}; nodes are 0 to {len(self.placement) - 1}")
        codec, pair = codec_of(type(message)), (node.rank, to)
        host = self.placement[to]
        if host == self.index:
            self.records.sent[pair] += 1
            self.records.received[pair] += 1
            self.scheduler.deliver(to, node.rank, codec.copy(message))
            return
        packed, *tensors = codec.parts(message, self.transport.pool)
        envelope = _ENVELOPE.pack(node.rank, to, time.monotonic_ns() - self.records.began)
        if to not in self.departed and self.transport.send(host, envelope + packed, *tensors):
            self.records.sent[pair] += 1
            self.records.bytes_sent += codec.size(message)
        else:
            self.records.message(node.rank, to, message, self.elapsed, LOST)

    def all_reduce(
        self,
        node: Node,
        values: Dense,
        group: Group,
        tag: tuple[int, int],
        *,
        read_only: bool = False,
    ) -> Awaitable[Tensor]:
        machines = {self.machines[self.placement[rank]] for rank in group}
        algorithm = algorithm_for(self._all_reduce, on_one_machine=len(machines) == 1)
        if not self._is_alone(node):
            values = joined(values).detach().clone()
        if algorithm is SHARED:  # Which takes it in pieces, too.
            return shared_all_reduce(node, values, group, tag, read_only=read_only)
        return algorithm.run(node, joined(values), group, tag)

    async def apply_mean(
        self, node: Node, gradient: Gradient, group: Group, tag: tuple[int, int]
    ) -> None:
        if node.part is None:
            read_only = node.optimizer.only_reads
            mean = await self.all_reduce(node, gradient.dense, group, tag, read_only=read_only)
            node._step(mean, (gradient.version,))
        else:
            await sharded_step(node, gradient, group, tag)

    def buffer(
        self, like: Tensor, size: int | None = None, at: int = 0, given: bool = False
    ) -> Tensor:
        shape = like.shape if size is None else torch.Size([size])
        count, width = shape.numel(), like.itemsize
        if not like.is_cpu or count * width < SHARED_FROM:
            return like.new_empty(shape)
        lead = padding(at * width) // width
        memory = self.transport.pool.tensor(lead + count, like.dtype, given=given)
        return memory if lead == 0 and len(shape) == 1 else memory[lead:].view(shape)

    def is_ready(self, x: Tensor) -> bool:
        return self.transport.pool.place(x) is not None

    def is_given(self, received: Tensor) -> bool:
        return self.transport.is_given(received)

    def join(self, pieces: Sequence[Tensor], read_only: bool = False) -> Tensor:
        stitched = self.transport.join(pieces, read_only=read_only)
        return torch.cat(list(pieces)) if stitched is None else stitched

    # What the scheduler leaves to the runtime

    def request_gradient(self, task: Task, request: GradientRequest) -> None:
        if self.stopped or not self._may_compute(task.node, request):
            self._park(task)
        else:
            if not self._is_still(task.node, request):
                request.snapshot = request.snapshot.clone()
            self.requests.append((task, request))

    def _is_still(self, node: Node, request: GradientRequest) -> bool:
        """Whether nothing changes the snapshot before the gradient is there."""
        alone = len(self.scheduler.tasks[node.rank]) == 1
        return alone and node.shared is None and request.cancel_on is None

    def _is_alone(self, node: Node) -> bool:
        """Whether only one role lives on that node: while it is suspended nothing changes."""
        return len(self.scheduler.tasks[node.rank]) == 1

    def sleep(self, task: Task, seconds: float) -> None:
        due = self.elapsed + nanoseconds(seconds)
        heapq.heappush(self._timers, (due, id(task), task))
        timer = threading.Timer(seconds, self.transport.call_soon, [self._wake_sleepers])
        timer.daemon = True
        timer.start()

    def meet(self, task: Task, meet: Meet) -> None:
        raise RunError("a real run carries collectives out as messages")

    def next_round(self, task: Task) -> bool:
        if self.leaving or self.stopped:
            self.records.note(task.node.rank, task.id, Cause(Kind.PARKED))
            self._park(task)
            return False
        if self._holds(task.node):
            self.records.note(task.node.rank, task.id, Cause(Kind.PAUSED))
            self.paused.append(task)
            return False
        return True

    def _holds(self, node: Node) -> bool:
        """Whether a pause holds that worker before its present round."""
        first = self._pause_at
        return first is not None and node.round >= (
            first if isinstance(first, int) else first.get(node.rank, 0)
        )

    def _park(self, task: Task) -> None:
        self.parked.append(task)
        if self.leaving:
            self.finished = True
        self.changed.notify_all()

    def waited(self, task: Task) -> None:
        self.records.waits(task.node.rank)

    def resumed(self, task: Task, cause: Cause | None) -> None:
        records = self.records
        if records.journals and cause is not None:
            records.note(task.node.rank, task.id, cause)
        if records.waiting_since and task.id == 0:
            records.waits_no_more(task.node.rank)

    def noticed(self, node: Node, peer: int) -> None:
        # The rounds that it took part in decide who a node's peers are, so they are kept too.
        self.records.note(node.rank, 0, Cause(Kind.DEPARTURE, peer, node.rounds_of.get(peer, -1)))

    def watched(self, node: Node, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        return coroutine if self._watch is None else self._watch(node, coroutine)

    # Events from the transport's thread

    def _on_frame(self, host: int, parts: list[memoryview]) -> None:
        if host == COORDINATOR:
            self._on_order(parts[0])
            return
        try:
            source, to, sent = _ENVELOPE.unpack_from(parts[0])
            message = unpack(parts, _ENVELOPE.size)
        except (struct.error, ValueError, IndexError) as error:
            self.fail(RunError(f"host {host} sent what is no message: {error}"))
            return
        # Only the message refers to its memory now, and only who takes it to the message.
        del parts[:]
        with self.lock:
            if to == _NO_NODE:
                self.heard.setdefault(host, deque()).append(message)
                self._on_word(host, message)
                self.changed.notify_all()
                return
            if self._running:
                self._receive(source, to, message, sent)
                del message
                self._drain()
            else:
                self._early.append((source, to, message, sent))

    def _receive(self, source: int, to: int, message: Any, sent: int) -> None:
        self.records.received[source, to] += 1
        node = self.scheduler.nodes.get(to)
        self.records.message(source, to, message, sent, LOST if node is None else DELIVERED)
        if node is not None:
            if not node.parameters.is_cpu:
                message = codec_of(type(message)).to(message, node.parameters.device)
            self.scheduler.deliver(to, source, message)

    def _on_lost(self, host: int, graceful: bool) -> None:
        if host == COORDINATOR:
            self._on_orphaned()
            return
        kind = FAULT_KINDS.index("leave" if graceful else "crash")
        ranks = [rank for rank, at in enumerate(self.placement) if at == host]
        if graceful or not self._returns(ranks):
            self.lose(ranks, kind)

    def lose(self, ranks: Sequence[int], kind: int) -> None:
        """Nodes have departed: tell every node here."""
        with self.lock:
            if self.finished:
                return
            for rank in ranks:
                self.departed.add(rank)
                self.records.fault(rank, kind)
                self.retire(rank)
            self.changed.notify_all()

    def retire(self, rank: int) -> None:
        """A node takes no further part: nobody here awaits it any more."""
        with self.lock:
            for own in list(self.scheduler.nodes):
                self.scheduler.lose(own, rank)
            if self._running:
                self._drain()

    def _wake_sleepers(self) -> None:
        with self.lock:
            while self._timers and self._timers[0][0] <= self.elapsed:
                _, _, task = heapq.heappop(self._timers)
                if not self.stopped:
                    self.scheduler.resume(task, cause=WOKEN)
            self._drain()

    def _on_tick(self) -> None:
        if self._pages is not None:
            self._pages.tick()
        if self._tick is not None:
            self._tick()
