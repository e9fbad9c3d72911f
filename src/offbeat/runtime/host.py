"""Host: one process's part of a real run, as its owner handles it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..node import Node
from ..parameters import Values
from ..suspensions import Gradient, GradientRequest
from .capture import capture, read_state, restore
from .causes import GRADIENT, Cause, Kind
from .monitor import Monitor
from .status import Snapshot, Status
from .tasks import Task

OUTBOX_LIMIT = 256 << 20
"""Bytes queued for slow receivers above which a host asks for no further gradient."""
OUTBOX_PATIENCE = 60.0
"""Seconds for which it asks for none."""


class Host(Monitor):
    """The nodes of one process, to be begun, held, looked at, given gradients and ended."""

    # Life

    def connect(
        self, addresses: Mapping[int, str], timeout: float, *, dial_all: bool = False
    ) -> None:
        self.transport.connect(addresses, timeout, dial_all=dial_all)

    def reset(self, absent: Iterable[int]) -> None:
        """Give up all nodes and what they were about; then `add` and `begin` as at first."""
        with self.lock:
            self._running = False
            for rank in list(self.scheduler.nodes):
                self.scheduler.remove(rank)
            for held in (self.requests, self.parked, self.paused, self._timers, self._early):
                held.clear()
            self._when_whole.clear()
            self.records.reset()
            self.departed = set(absent)
            self._pause_at = None

    def add(self, node: Node, saved: bytes | None = None) -> None:
        """Take a node in, to begin anew or from what `capture` gave.

        Raises:
            EncodingError, CaptureError: what was saved cannot be read, or is of another model.
        """
        self.records.open(node.rank, self.machines[self.index], saved)
        with self.lock:
            self.scheduler.add(node)
            if saved is not None:
                restore(self.scheduler, read_state(saved))
            for peer in self.departed:
                self.scheduler.lose(node.rank, peer)

    def begin(self, began: int) -> None:
        """Start the roles; `began` is the run's time 0 on the monotonic clock, in nanoseconds."""
        with self.lock:
            self.records.began = began
            self._running = True
            for node in list(self.scheduler.nodes.values()):
                self.scheduler.begin(node)
            self._drain()
            for source, to, message, sent in self._early:
                self._receive(source, to, message, sent)
                self._drain()
            self._early.clear()

    def stop(self) -> None:
        """Answer no further gradient request; messages are still served."""
        with self.lock:
            self.stopped = True
            self.parked += [task for task, _ in self.requests]
            self.parked += self.paused
            self.requests.clear()
            self.paused.clear()
            self._timers.clear()
            self.changed.notify_all()

    # Holding it

    def pause(self, at_round: int | dict[int, int] = 0, order: int = 0) -> None:
        """Hold each worker before the first round from `at_round` on that it comes to.

        A mapping gives each worker's own round, by rank. Those that are held before an earlier one
        go on until there. Servers and what runs beside a worker go on to serve. From now on
        `status` says the number of this order.
        """
        with self.lock:
            self._pause_at, self._order = at_round, order
            self._release([task for task in self.paused if not self._holds(task.node)])

    def proceed(self) -> None:
        """Let the workers go on that `pause` holds."""
        with self.lock:
            self._pause_at = None
            self._release(list(self.paused))

    def capture(self) -> dict[int, bytes]:
        """All that decides how each node here goes on, by rank; while all workers are paused.

        Raises:
            CaptureError, EncodingError: in one line, why a node cannot be captured as it is.
        """
        with self.lock:
            return {rank: capture(self.scheduler, rank) for rank in self.scheduler.nodes}

    def _release(self, tasks: list[Task]) -> None:
        for task in tasks:
            self.paused.remove(task)
            self.scheduler.proceed(task)
        self._drain()

    # Its end

    def leave(self) -> None:
        """Depart at the worker's next round, or at once if it awaits nothing but the end."""
        with self.lock:
            self.leaving = True
            if self.parked or self.paused:
                self.finish()

    def finish(self) -> None:
        """Let `next_request` return None."""
        with self.lock:
            self.finished = True
            self.changed.notify_all()
        self.transport.wake()

    def close(self, timeout: float = 5.0) -> None:
        """Leave the mesh gracefully, and close every role."""
        if self.failure is None:
            self.transport.close(timeout)
        self.abort()

    def abort(self) -> None:
        self.transport.abort()
        with self.lock:
            self.scheduler.close()
            self.records.close()

    # What is seen of it

    @property
    def is_idle(self) -> bool:
        """Whether no gradient is wanted or being computed, and no sleeper will wake."""
        # Once the budget is spent sleepers have nothing left to wake for.
        asleep = bool(self._timers) and not self.parked
        return self._running and not self.requests and self.computing is None and not asleep

    @property
    def events(self) -> int:
        """Gradients computed here, and messages received."""
        return self.records.computed + self.records.received.total()

    def status(self) -> Status:
        with self.lock:
            return Status(
                idle=self.is_idle,
                parked=bool(self.parked),
                stuck=any(
                    task.id == 0
                    and not task.node.is_server
                    and task not in self.parked
                    and task not in self.paused
                    for task in self.scheduler.waiting()
                ),
                waiting=[task.describe() for task in self.scheduler.waiting()],
                sent=dict(self.records.sent),
                received=dict(self.records.received),
                rounds={
                    node.rank: node.round
                    for node in self.scheduler.nodes.values()
                    if not node.is_server
                },
                pausing=None if self._pause_at is None else self._order,
                paused={task.node.rank for task in self.paused},
                computed=self.records.computed,
                steps=self.records.steps,
                bytes_sent=self.records.bytes_sent,
                departed=set(self.departed),
            )

    def snapshots(self) -> list[Snapshot]:
        with self.lock:
            return [Snapshot.of(node) for node in self.scheduler.nodes.values()]

    def when_whole(self, call: Callable[[], None]) -> None:
        """Call it, under the lock, at once or as soon as `is_whole`."""
        with self.lock:
            self._when_whole.append(call)
            self._call_if_whole()

    def retune(self, settings: Sequence[Mapping[str, Any]], change: int) -> None:
        """New hyper-parameters for the inner optimizers here; the journal keeps their number."""
        with self.lock:
            for node in self.scheduler.nodes.values():
                self.records.note(node.rank, 0, Cause(Kind.RETUNED, -1, change))
                node.optimizer.retune(settings)

    # Gradients

    def next_request(self, timeout: float | None = None) -> tuple[Task, GradientRequest] | None:
        """Wait for a role to ask for a gradient; None when the host has finished, failed or
        (with `timeout`, seconds) nothing came."""
        if self._is_full():
            self.transport.wait_outbox(OUTBOX_LIMIT, timeout=OUTBOX_PATIENCE)
        return self._take_request(timeout)

    def _is_full(self) -> bool:
        return self.transport.outbox_bytes > OUTBOX_LIMIT

    def _take_request(self, timeout: float | None) -> tuple[Task, GradientRequest] | None:
        with self.lock:
            if not self.requests:
                self.changed.wait_for(self._has_news, timeout)
            if not self.requests or self._has_ended():
                return None
            return self._taken()

    def _taken(self) -> tuple[Task, GradientRequest]:
        task, request = self.requests.popleft()
        self.computing = task.node.rank
        return task, request

    def request_at_once(self) -> tuple[Task, GradientRequest] | None:
        """A request that is here, if no connection needs to be served until its gradient is.

        What arrives meanwhile is left to `serve_request`, which is likely to be called then, and
        read at times until it is: a thread that takes it in at once disturbs this one.
        """
        with self.lock:
            if not self.requests or self.finished or self.failure is not None:
                return None
            if not self._may_be_deaf(*self.requests[0]):
                return None
            self.transport.stand_by()
            return self._taken()

    def serve_request(
        self, timeout: float | None = None, until: Callable[[], object] = lambda: False
    ) -> tuple[Task, GradientRequest] | None:
        """The same, and meanwhile this thread is the transport's: what arrives wakes no other.

        While the gradient is computed nobody listens for some hundredths of a second, but where
        somebody else's message may matter before it is done. No exception may strike this thread
        from outside.

        Args:
            until: ends the wait; asked after whatever arrives, every tick and every `wake`.
        """
        began = time.monotonic()
        deadline = math.inf if timeout is None else began + timeout

        def over() -> object:
            if self.requests and not self._is_full():
                return True
            if self._has_ended() or until():
                return True
            now = time.monotonic()
            return now > deadline or (self.requests and now >= began + OUTBOX_PATIENCE)

        while True:
            left: float | None = 0.0
            waits = not self.requests or self._is_full()
            if waits and not self.transport.serve(over) and not until():
                left = None if timeout is None else max(0.0, deadline - time.monotonic())
            asked = self._take_request(left)
            # The request that ended the wait may be gone: the budget was spent meanwhile.
            if asked or self._has_ended() or until() or time.monotonic() > deadline:
                break
        if asked is not None and self._may_be_deaf(*asked):
            self.transport.stand_by()
        else:
            self.transport.hand_over()
        return asked

    def _has_news(self) -> bool:
        return bool(self.requests) or self._has_ended()

    def _may_be_deaf(self, task: Task, request: GradientRequest) -> bool:
        """Whether nothing that arrives, or is still to be sent, matters before the gradient."""
        alone = len(self.scheduler.nodes) == 1 and self._is_still(task.node, request)
        return alone and self.transport.outbox_bytes == 0

    def fulfil(
        self,
        task: Task,
        request: GradientRequest,
        vector: Values,
        loss: float,
        began: int,
    ) -> None:
        """Hand a role the gradient it asked for, and step the roles that can go on."""
        with self.lock:
            self.computing = None
            if task.waiting is not request:
                return
            self.records.gradient(task.node.rank, began, loss)
            gradient = Gradient(vector, request.versions, loss)
            self.scheduler.resume(task, gradient, cause=GRADIENT)
            self._drain()

    def park(self, task: Task) -> None:
        """Leave the gradient that `next_request` gave unanswered: the budget is spent."""
        with self.lock:
            self.computing = None
            self._park(task)
