"""Child: what each process of a real run does, told by the run's coordinator."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ..encoding import EncodingError, decode, encode
from ..node import Node
from ..suspensions import GradientRequest
from . import control
from .assignment import Assignment
from .capture import CaptureError
from .compute import SerialEvaluator
from .control import COORDINATOR
from .errors import RunError
from .host import Host
from .monitor import Watch
from .pace import Pace
from .status import Status
from .tickets import LeasedTickets
from .world import World, require_finite

W = TypeVar("W")

CONNECTING = 60.0
"""Seconds for this process to reach the coordinator, and then for all to reach each other."""
WAITING = 60.0
"""Seconds that a process whose part is over waits for the others: longer than they may take."""


class Child:
    """One host, what the coordinator tells it, and its gradients."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.experiment = assignment.experiment
        self.world = World(self.experiment)
        self.pace = Pace(self.experiment)
        self.tickets = assignment.tickets or LeasedTickets(
            ask=lambda count: self.tell(control.Want(count=count)),
            on_wait=lambda: self.host.transport.hand_over(),
        )
        self._quota = self.experiment.quota
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ordering = threading.Lock()
        """Held while it is decided, or changed, who heeds what the coordinator says."""
        self._may_close = threading.Event()
        self._started = False
        self._reported = 0.0
        self._last_status: Status | None = None
        self._events = 0
        """As many as at the last tick."""
        self._obey: dict[type, Callable[[Any], None]] = {
            control.Take: self._take,
            control.Slow: self._slow,
            control.Grant: self._granted,
            control.Leave: lambda _: self.host.leave(),
            control.Pause: lambda word: self.host.pause(word.at_round, word.order),
            control.Capture: self._capture,
            control.Proceed: lambda _: self.host.proceed(),
            control.Restore: self._restore,
            control.Start: self._begin,
            control.Stop: self._stop,
            control.Finish: lambda _: self.host.finish(),
            control.Close: lambda _: self._may_close.set(),
            control.Abort: lambda _: os._exit(1),
        }
        self.host = Host(
            self.experiment.method,
            self.world.hosts,
            assignment.host,
            listen=assignment.listen,
            secret=assignment.secret,
            tls=assignment.tls,
            may_compute=self._may_ask,
            on_failure=self._failed,
            on_tick=self._on_tick,
            on_order=self._ordered,
            on_orphaned=lambda: self._may_close.is_set() or os._exit(1),
            journals=assignment.journals,
            all_reduce=self.experiment.cluster.all_reduce,
            watch=_watch(assignment.chaos),
            returns=self._returns,
        )

    def run(self) -> None:
        host = self.host
        host.connect({COORDINATOR: self.assignment.coordinator}, timeout=CONNECTING)
        addresses = host.transport.addresses
        self.tell(control.Ready(addresses=tuple(addresses), layout=self.world.layout))
        meet = self._await(control.Meet)
        host.connect(meet.addresses, timeout=CONNECTING, dial_all=meet.late)
        self._place(meet)
        self.tell(control.Connected())
        self._begin(self._await(control.Start))
        with self._ordering:
            self._started = True
            while not self._orders.empty():
                # Said since the start, before this thread had come here.
                self._follow(self._orders.get())
        self._compute()
        if host.failure is not None:
            self.tell(control.Traced(trace=self._trace()))
            self._may_close.wait(WAITING)
        else:
            host.finish()
            self.tell(
                control.Done(
                    # Others hold the same, and may be in the midst of a step that never ends.
                    nodes=self._held() if host.is_whole else (),
                    trace=self._trace(),
                    status=host.status(),
                    punctuality=self.pace.punctuality,
                )
            )
            # Until all have finished a closed connection would look like a departure.
            self._may_close.wait(WAITING)
        host.close(timeout=2.0)

    def _trace(self) -> control.Tables:
        with self.host.lock:
            return control.Tables.of(self.host.records.trace)

    def _place(self, word: control.Meet | control.Restore) -> None:
        """Make the nodes of this host."""
        host = self.host
        host.reset(word.absent)
        host.locate(word.machines)
        for rank, at in enumerate(self.world.hosts):
            if at == host.index:
                shared, replica = self.assignment.shared, self.assignment.replica
                node = self.world.node(
                    rank,
                    host,
                    self.world.initial,
                    shared=shared,
                    replica=None if replica is None else replica.vector,
                )
                saved = word.nodes.get(rank)
                host.add(node, None if saved is None else saved.numpy().tobytes())

    def tell(self, word: Any) -> None:
        with contextlib.suppress(ValueError):  # Nobody is there to be told.
            self.host.transport.send(COORDINATOR, encode(word))

    # Gradients

    def _compute(self) -> None:
        problem, train = self.world.problem, self.world.data.train
        evaluator = SerialEvaluator(self.world.make_module(), problem.loss, train, self.host.buffer)
        host = self.host
        while (asked := host.serve_request()) is not None:
            task, request = asked
            if isinstance(self.tickets, LeasedTickets) and not self.tickets.take():
                host.park(task)
                continue
            began, rank = host.elapsed, task.node.rank
            injected = self.pace.injected(rank)
            job = self.world.job(rank, request)
            try:
                evaluator.evaluate_one(job)
                require_finite(job, rank, request.step, host.elapsed / 1e9)
            except Exception as error:
                host.fail(error)
                return
            self.pace.hold(rank, host.elapsed - began, injected)
            assert job.vector is not None
            host.fulfil(task, request, job.vector, job.loss, began)

    def _may_ask(self, node: Node, request: GradientRequest) -> bool:
        if self._quota is not None and request.step >= self._quota:
            return False
        return isinstance(self.tickets, LeasedTickets) or self.tickets.take()

    def _failed(self, error: BaseException) -> None:
        self.pace.end()
        if isinstance(error, RunError):
            self.tell(control.Failed(text=str(error)))
        else:
            text = f"host {self.host.index}: {type(error).__name__}: {error}"
            self.tell(control.Failed(text=text))

    # What the coordinator says, in the transport's thread

    def _ordered(self, payload: memoryview) -> None:
        word = decode(payload)
        with self._ordering:
            if self._started or isinstance(word, control.Abort):
                self._follow(word)
            else:
                self._orders.put(word)

    def _follow(self, word: Any) -> None:
        if type(word) in self._obey:
            self._obey[type(word)](word)

    def _await(self, kind: type[W]) -> W:
        """The next word, which is of that kind unless the run has ended already."""
        word = self._orders.get()
        if not isinstance(word, kind):
            raise SystemExit(0)
        return word

    def _take(self, word: control.Take) -> None:
        self.host.when_whole(functools.partial(self._give, word.asked))

    def _give(self, asked: int) -> None:
        nodes, status = self._held(), self.host.status()
        self.tell(control.Snapshots(asked=asked, nodes=nodes, status=status))

    def _capture(self, word: control.Capture) -> None:
        try:
            nodes = {
                rank: torch.frombuffer(bytearray(state), dtype=torch.uint8)
                for rank, state in self.host.capture().items()
            }
            self.tell(control.Captured(asked=word.asked, nodes=nodes))
        except (CaptureError, EncodingError) as error:
            self.tell(control.Captured(asked=word.asked, nodes={}, refusal=str(error)))

    def _held(self) -> tuple[control.Held, ...]:
        return tuple(control.Held.of(snapshot) for snapshot in self.host.snapshots())

    def _restore(self, word: control.Restore) -> None:
        if isinstance(self.tickets, LeasedTickets):
            self.tickets.reset()
        self._place(word)
        self.tell(control.Restored())

    def _begin(self, word: control.Start) -> None:
        # Clocks of other machines tell another time: there it begins when it is heard.
        same = word.boot == control.boot()
        self.host.begin(word.began if same else time.monotonic_ns() - word.elapsed)

    def _returns(self, ranks: Sequence[int]) -> bool:
        """Whether the run waits for nodes that are lost, and goes back to its last checkpoint."""
        needed = not self.experiment.method.survives_loss
        return self.assignment.replaces and (needed or bool(set(ranks) & set(self.world.servers)))

    def _slow(self, word: control.Slow) -> None:
        self.pace.slowdown = word.factor

    def _granted(self, word: control.Grant) -> None:
        assert isinstance(self.tickets, LeasedTickets)
        self.tickets.granted(word.count, last=word.last)

    def _stop(self, word: control.Stop) -> None:
        self.host.stop()
        self.pace.end()
        if isinstance(self.tickets, LeasedTickets):
            self.tickets.end()

    def _on_tick(self) -> None:
        """Twenty milliseconds have passed: say how it stands."""
        if not self._started or self.host.finished:
            return
        now = time.monotonic()
        due = now - self._reported > 0.25
        events = self.host.events
        still, self._events = events == self._events, events
        # To count everything takes a while. Who waits for a message is idle, but not for long.
        if not due and not (still and self.host.is_idle):
            return
        status = self.host.status()
        if due or (status.idle and status != self._last_status):
            self._reported = now
            self._last_status = status
            self.tell(control.Report(status=status))


def _watch(chaos: str | None) -> Watch | None:
    if chaos is None:
        return None
    from ..testing.chaos import Saboteur

    return Saboteur.parse(chaos).watch
