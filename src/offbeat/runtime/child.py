"""Child: what each process of a real run does, told by the launcher over a pipe."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Optimizers import it when first used, for seconds; the server of forks does it once for all.
import torch._dynamo  # pyright: ignore[reportUnusedImport]

from ..experiment import Experiment
from ..node import GradientRequest, Node
from .compute import SerialEvaluator
from .host import Host, Status
from .pace import Pace
from .scheduler import RunError
from .tickets import Tickets
from .world import World, require_finite


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What the launcher gives a child."""

    experiment: Experiment
    host: int
    sockets: Path
    journals: Path | None
    secret: bytes


class Child:
    """One host, its control pipe and its gradients.

    The pipe carries tuples that begin with a word: "ready", "status", "snapshots", "failed" and
    "done" from here; "addresses", "start", "snapshot", "slow", "leave", "stop", "finish", "close"
    and "abort" from the launcher.
    """

    def __init__(self, assignment: Assignment, pipe: Any) -> None:
        self.pipe = pipe
        self.experiment = assignment.experiment
        self.world = World(self.experiment)
        self.pace = Pace(self.experiment)
        self._sockets = assignment.sockets
        self._started = False
        self._may_close = threading.Event()
        self._sending = threading.Lock()
        self._reported = 0.0
        self._last_status: Status | None = None
        quota = self.experiment.quota
        self._quota = quota
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        self.tickets = Tickets(assignment.sockets / "tickets", self.experiment.gradients)
        self.host = Host(
            self.experiment.method,
            self.world.hosts,
            assignment.host,
            listen=f"unix:{assignment.sockets / str(assignment.host)}",
            secret=assignment.secret,
            may_compute=self._may_compute,
            on_failure=self._failed,
            on_tick=self._on_tick,
            journals=assignment.journals,
            all_reduce=self.experiment.cluster.all_reduce,
        )

    def run(self) -> None:
        host, layout = self.host, self.world.layout
        self.tell("ready", host.transport.address, layout)
        addresses = self._await("addresses")
        host.connect(addresses, timeout=60.0)
        for rank, at in enumerate(self.world.hosts):
            if at == host.index:
                host.add(self.world.node(rank, host, self.world.initial))
        self.tell("connected")
        began = self._await("start")
        self._started = True
        host.begin(began)
        self._compute()
        if host.failure is not None:
            self.tell("trace", host.trace)
        else:
            host.finish()
            self.tell("done", host.snapshots(), host.trace, host.status(),
                      self.pace.punctuality)  # fmt: skip
            # Until all have finished a closed connection would look like a departure, and until
            # the launcher has read this a closed pipe could lose it.
            self._may_close.wait(timeout=10.0)
        host.close(timeout=2.0)

    def tell(self, word: str, *values: Any) -> None:
        with self._sending, contextlib.suppress(BrokenPipeError, OSError):
            self.pipe.send((word, *values))

    def _await(self, word: str) -> Any:
        received, *values = self.pipe.recv()
        if received != word:
            raise SystemExit(0)
        return values[0]

    def _compute(self) -> None:
        problem, train = self.world.problem, self.world.data.train
        evaluator = SerialEvaluator(self.world.make_module(), problem.loss, train)
        host = self.host
        while (asked := host.next_request()) is not None:
            task, request = asked
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

    def _may_compute(self, node: Node, request: GradientRequest) -> bool:
        if self._quota is not None:
            return request.step < self._quota and self.tickets.take()
        return self.tickets.take()

    def _failed(self, error: BaseException) -> None:
        self.pace.end()
        if isinstance(error, RunError):
            self.tell("failed", str(error))
        else:
            self.tell("failed", f"host {self.host.index}: {type(error).__name__}: {error}")

    def _on_tick(self) -> None:
        """Twenty milliseconds have passed: read orders, say how it stands."""
        if not self._started:
            return
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                self._obey(*self.pipe.recv())
        now = time.monotonic()
        status = self.host.status()
        news = status.idle and status != self._last_status
        if not self.host.finished and (news or now - self._reported > 0.25):
            self._reported = now
            self._last_status = status
            self.tell("status", status)

    def _obey(self, word: str, *values: Any) -> None:
        host = self.host
        if word == "snapshot":
            self.tell("snapshots", values[0], host.snapshots(), host.status())
        elif word == "slow":
            self.pace.slowdown = values[0]
        elif word == "leave":
            host.leave()
        elif word == "stop":
            host.stop()
            self.pace.end()
        elif word == "finish":
            host.finish()
        elif word == "close":
            self._may_close.set()
        else:
            os._exit(1)


def is_over(pipe: Any, seconds: float | None = 0.0) -> bool:
    """Whether the other end of a pipe is closed, or is within that time; reads nothing from it."""
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(None if seconds is None else 1000 * seconds))


def _end_with_launcher(assignment: Assignment, pipe: Any) -> None:
    """Once the launcher is gone nobody is left to report to, or to clean up after."""
    is_over(pipe, None)
    shutil.rmtree(assignment.sockets, ignore_errors=True)
    os._exit(1)


def main(assignment: Assignment, pipe: Any) -> None:
    """A child's whole life."""
    # A thread of its own, for a role that blocks may hold the host's lock.
    threading.Thread(target=_end_with_launcher, args=(assignment, pipe), daemon=True).start()
    try:
        _live(assignment, pipe)
    finally:
        if is_over(pipe):
            shutil.rmtree(assignment.sockets, ignore_errors=True)
        # Taking the interpreter down with torch in it takes longer than many a run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _live(assignment: Assignment, pipe: Any) -> None:
    # The launcher decides what an interrupt means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(assignment.experiment.threads)
    try:
        child = Child(assignment, pipe)
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
        return
    try:
        child.run()
    except (EOFError, BrokenPipeError):
        pass
    except Exception as error:
        child.tell("failed", f"host {assignment.host}: {type(error).__name__}: {error}")
    finally:
        child.host.abort()
