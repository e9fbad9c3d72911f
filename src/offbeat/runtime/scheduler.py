"""Scheduler: steps the roles of any number of nodes and keeps their mailboxes.

What differs between runtimes (time, network, where gradients are computed) lies behind
`Executor`. The scheduler itself never waits.
"""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Coroutine
from typing import Any

from ..method import Method, NextRound
from ..node import Node
from ..suspensions import GradientRequest, Meet, PeerLost, Receive, Sleep
from .causes import CANCELLED, Cause, Kind
from .errors import RoleError, RunError
from .executor import Executor
from .mailbox import Mailbox
from .tasks import Task

# An enumeration's own member takes as long as a call.
_MESSAGE, _MESSAGE_NOW = Kind.MESSAGE, Kind.MESSAGE_NOW
MOST_SPINS = 1000
"""Rounds of a role that never suspends before it counts as endless."""


class Scheduler:
    """Steps coroutines. `drain()` runs until every role waits for something outside."""

    def __init__(self, executor: Executor, method: Method) -> None:
        self.executor = executor
        self.method = method
        self.nodes: dict[int, Node] = {}
        self.tasks: dict[int, list[Task]] = {}
        self.mailboxes: dict[int, Mailbox] = {}
        self._receivers: dict[int, list[Task]] = {}
        self._ready: deque[tuple[Task, Any, BaseException | None, Cause | None]] = deque()
        self._current: Task | None = None
        self._draining = False
        self._next_id: dict[int, int] = {}

    # Nodes and tasks

    def add(self, node: Node) -> None:
        """Take a node in; `begin` starts its roles."""
        self.nodes[node.rank] = node
        self.tasks[node.rank] = []
        self.mailboxes.setdefault(node.rank, Mailbox())
        self._receivers[node.rank] = []
        self._next_id[node.rank] = 0

    def begin(self, node: Node) -> None:
        for name, coroutine in self.method.roles(node).items():
            self._start(node, name, coroutine, is_role=True)

    def start(self, node: Node, name: str, coroutine: Coroutine[Any, Any, Any]) -> Task:
        """Run a coroutine beside the roles of a node."""
        self.acted()
        return self._start(node, name, coroutine, is_role=False)

    def _start(
        self, node: Node, name: str, coroutine: Coroutine[Any, Any, Any], *, is_role: bool
    ) -> Task:
        coroutine = self.executor.watched(node, coroutine)
        task = Task(node, name, coroutine, self._next_id[node.rank], is_role)
        self._next_id[node.rank] += 1
        self.tasks[node.rank].append(task)
        self._ready.append((task, None, None, None))
        return task

    def remove(self, rank: int) -> list[tuple[int, Any]]:
        """Close a departed node's roles; returns the messages it had not read."""
        self.nodes.pop(rank, None)
        for task in self.tasks.pop(rank, []):
            task.waiting = None
            task.outcome = (None, None)
            task.close()
        self._receivers.pop(rank, None)
        return self.mailboxes.pop(rank, Mailbox()).unread()

    def close(self) -> None:
        """Close every coroutine that is left."""
        for tasks in self.tasks.values():
            for task in tasks:
                task.close()

    def waiting(self) -> list[Task]:
        return [task for tasks in self.tasks.values() for task in tasks if task.outcome is None]

    # Events from outside

    def resume(
        self,
        task: Task,
        value: Any = None,
        error: BaseException | None = None,
        cause: Cause | None = None,
    ) -> None:
        """Answer what a task awaits. Nothing runs before `drain`."""
        if task.outcome is None:
            task.waiting = None
            task.fresh = False
            self._ready.append((task, value, error, cause))

    def answer(self, task: Task, source: int, message: Any, cause: Cause | None = None) -> None:
        """Give a task the message that it awaits."""
        self.resume(task, [(source, message)], cause=cause)

    def proceed(self, task: Task) -> None:
        """Let a role go on that the executor has held between two rounds."""
        self.resume(task, cause=Cause(Kind.PROCEEDED))
        task.fresh = True

    def acted(self) -> None:
        """The role that runs has done in its round what must not be done twice."""
        if self._current is not None:
            self._current.fresh = False

    def deliver(self, to: int, source: int, message: Any) -> None:
        """Hand a message over: to the role that awaits it, else to the mailbox."""
        node = self.nodes.get(to)
        if node is None:
            return
        mailbox, receivers = self.mailboxes[to], self._receivers[to]
        number = mailbox.count(source)
        # Who waits has found nothing in the mailbox that it would take.
        for index, task in enumerate(receivers):
            wanted: Receive[Any] = task.waiting
            if wanted.message_type is type(message) and wanted.accepts(source, message):
                del receivers[index]
                mailbox.taken += 1
                self.answer(task, source, message, Cause(_MESSAGE, source, number))
                break
        else:
            mailbox.put(source, message, number)
        for task in self.tasks[to]:
            request = task.waiting
            if type(request) is GradientRequest and request.cancel_on is type(message):
                self.executor.cancelled(task, request)
                self.resume(task, cause=CANCELLED)

    def lose(self, rank: int, peer: int) -> None:
        """Tell a node that a peer has departed; whoever awaits it gets PeerLost."""
        node = self.nodes.get(rank)
        if node is None:
            return
        if peer not in node.departed:
            node.departed.add(peer)
            self.executor.noticed(node, peer)
        for task in list(self._receivers[rank]):
            if task.waiting.source == peer or task.waiting.departures:
                self._receivers[rank].remove(task)
                self.resume(task, error=PeerLost(peer), cause=Cause(Kind.LOST, peer))

    def forget(self, peer: int) -> list[tuple[int, int, Any]]:
        """Drop what a peer sent and nobody has read: (source, to, message)."""
        return [
            (peer, rank, message)
            for rank, mailbox in self.mailboxes.items()
            for message in mailbox.discard(peer)
        ]

    def poll(self, node: Node, wanted: Receive[Any]) -> tuple[int, Any, int] | None:
        return self.mailboxes[node.rank].take(wanted)

    # Stepping

    def drain(self) -> None:
        """Run every task that can go on, until all wait."""
        if self._draining:
            return
        self._draining = True
        try:
            while self._ready:
                self._advance(*self._ready.popleft())
        finally:
            self._current = None
            self._draining = False

    def _advance(
        self, task: Task, value: Any, error: BaseException | None, cause: Cause | None
    ) -> None:
        if task.outcome is not None:
            return
        self.executor.resumed(task, cause)
        self._current = task
        send = task.coroutine.send
        spins = 0
        while True:
            try:
                if error is None:
                    request = send(value)
                else:
                    request, error = task.coroutine.throw(error), None
            except StopIteration as stop:
                self._finish(task, stop.value, None)
                return
            except RunError:
                raise
            except (Exception, SystemExit) as raised:
                self._failed(task, raised)
                return
            value = None
            kind = type(request)
            if kind is GradientRequest:
                cancel = request.cancel_on
                if cancel is not None and self.holds(task, cancel):
                    self.executor.resumed(task, Cause(Kind.CANCELLED_NOW))
                    spins = self._spin(task, spins)
                    continue
                task.waiting = request
                self.executor.request_gradient(task, request)
                return
            if kind is Receive:
                rank = task.node.rank
                found = self.take(task, request)
                if found is not None:
                    task.fresh = False
                    self.executor.resumed(task, Cause(_MESSAGE_NOW, found[0], found[2]))
                    value, spins, found = [(found[0], found[1])], 0, None
                    continue
                if request.source is not None and request.source in task.node.departed:
                    task.fresh = False
                    self.executor.resumed(task, Cause(Kind.LOST_NOW, request.source))
                    error = PeerLost(request.source)
                    continue
                task.waiting = request
                self._receivers[rank].append(task)
            elif kind is NextRound:
                spins = self._spin(task, spins)
                task.fresh = True
                if request.beside or self.executor.next_round(task):
                    continue
                task.waiting = request
                return
            elif kind is Meet:
                task.waiting = request
                self.executor.meet(task, request)
            elif kind is Sleep:
                task.waiting = request
                self.executor.sleep(task, request.seconds)
            elif kind is Task:
                if request.outcome is not None:
                    value, error = request.outcome
                    continue
                task.waiting = request
                request.watchers.append(task)
            else:
                self._refuse(task, request)
            if task.waiting is not None and task.id == 0:
                self.executor.waited(task)
            return

    def _spin(self, task: Task, spins: int) -> int:
        """Count what a role does without ever being suspended, nor reading a message."""
        if spins >= MOST_SPINS:
            raise RoleError(
                f"{type(self.method).__name__} on node {task.node.rank} ({task.name}) repeats for "
                "ever without awaiting anything that takes time; await node.gradient(), "
                "node.recv(...) or node.sleep(...) in it, and read the messages that cancel"
            )
        return spins + 1

    def take(self, task: Task, request: Receive[Any]) -> tuple[int, Any, int] | None:
        """A message for a role that has just asked."""
        return self.mailboxes[task.node.rank].take(request)

    def holds(self, task: Task, message_type: type) -> bool:
        """Whether a message of that type is here, unread."""
        return bool(self.mailboxes[task.node.rank].by_type.get(message_type))

    def _finish(self, task: Task, value: Any, error: BaseException | None) -> None:
        task.outcome = (value, error)
        self.tasks[task.node.rank].remove(task)
        for watcher in task.watchers:
            self.resume(watcher, value, error)

    def _failed(self, task: Task, raised: BaseException) -> None:
        if task.watchers or (isinstance(raised, PeerLost) and not task.is_role):
            # Whoever awaits what it started gets the exception.
            self._finish(task, None, raised)
            return
        method = type(self.method).__name__
        where = f"{method} on node {task.node.rank} ({task.name})"
        if isinstance(raised, PeerLost):
            lost = "server" if raised.peer in task.node.servers else "worker"
            raise RoleError(
                f"{where} cannot go on: {lost} {raised.peer} {self.executor.absence(raised.peer)}"
                + ("" if self.method.survives_loss else f", and {method} does not survive a loss")
            ) from raised
        last = self._culprit(raised)
        raise RoleError(
            f"{where} raised {type(raised).__name__}: {raised} "
            f"({last.filename.rsplit('/', 1)[-1]}:{last.lineno})"
        ) from raised

    def _culprit(self, raised: BaseException) -> traceback.FrameSummary:
        """The innermost frame in the method's own file, else the innermost."""
        frames = traceback.extract_tb(raised.__traceback__)
        own = getattr(sys.modules.get(type(self.method).__module__), "__file__", None)
        return next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])

    def _refuse(self, task: Task, request: Any) -> None:
        method = type(self.method).__name__
        raise RoleError(
            f"{method} on node {task.node.rank} ({task.name}) awaited {request!r}; a role may "
            "await only what its node offers: gradient, recv, all_reduce, barrier, sleep, start"
        )
