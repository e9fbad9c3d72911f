"""Processes: a launcher on this machine, and one process for each host of the run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from ..experiment import Experiment
from ..method import ModelLost
from ..parameters import Layout
from ..runs import Metrics, Run
from ..trace import Trace
from .child import Assignment, main
from .host import Snapshot, Status
from .pace import Punctuality
from .scheduler import RunError
from .tickets import Tickets
from .world import Progress, World, divergence

START_TIMEOUT = 120.0
"""Seconds for all processes to build their model and find each other."""
PATIENCE = 30.0
"""Seconds without a word from a process after which it counts as hung."""
FAREWELL = 8.0
"""Seconds that processes have to end by themselves."""


@dataclass(eq=False)
class Member:
    """One child, as the launcher knows it."""

    process: Any
    pipe: Any
    ranks: list[int]
    heard: float = field(default_factory=time.monotonic)
    address: str | None = None
    layout: Layout | None = None
    connected: bool = False
    status: Status | None = None
    snapshots: list[Snapshot] | None = None
    trace: Trace | None = None
    punctuality: dict[int, Punctuality] = field(default_factory=dict[int, Punctuality])
    failed: str | None = None
    gone: str | None = None
    """Why it takes no part any more."""

    @property
    def names(self) -> str:
        return "node " + " and ".join(map(str, self.ranks))


class Launcher:
    """Starts, watches and ends the processes of one run."""

    def __init__(
        self, experiment: Experiment, directory: Path | None, progress: Progress | None
    ) -> None:
        late = [fault.rank for fault in experiment.cluster.faults if fault.kind == "join"]
        if late:
            raise ValueError(
                f"node {late[0]} joins late, which only `simulate` can do so far; drop the fault"
            )
        if experiment.cluster.outages:
            raise ValueError(
                "cluster.outages part nodes of a simulated network; a real run cannot bring them "
                "about so far: drop them, or use `simulate`"
            )
        _require_sendable(experiment)
        self.experiment = experiment
        self.world = World(experiment)
        self.progress = progress
        self.metrics: list[Metrics] = []
        self.notes: list[str] = []
        self.stop_reason: str | None = None
        self.members: list[Member] = []
        self.tickets: Tickets | None = None
        self.journals = None if directory is None else directory / "journals"
        if self.journals is not None:
            shutil.rmtree(self.journals, ignore_errors=True)
            self.journals.mkdir(parents=True)
        self._began = 0
        self._asked = 0
        self._answers: dict[int, tuple[list[Snapshot], Status]] = {}
        self._asked_at: tuple[float, int] | None = None
        self._next_evaluation = experiment.evaluation_interval
        self._faults = sorted(experiment.cluster.faults, key=lambda fault: fault.at)
        self._recoveries: list[tuple[float, int]] = []

    def run(self) -> Run:
        """Carry the run out; leaves no process and no file but the run directory's behind."""
        # Beneath /tmp whatever TMPDIR says: a Unix socket's path has at most 107 bytes. The
        # children make it: they are there to remove it should this process be killed.
        self.sockets = Path(f"/tmp/offbeat-{os.getpid()}-{secrets.token_hex(8)}")
        error: str | None = None
        try:
            try:
                self._spawn()
                self._assemble()
                self._watch()
            except KeyboardInterrupt:
                self.stop_reason = "interrupted"
                self._tell("stop")
            if self._began:
                self._collect()
        except RunError as failure:
            error, self.stop_reason = str(failure), "error"
        except KeyboardInterrupt:
            # A second one: whoever has not reported yet is not waited for.
            self.stop_reason = "interrupted"
        finally:
            with uninterrupted():
                self._end()
        return self._result(error)

    # Beginning

    def _spawn(self) -> None:
        # One server process imports torch once; every child is forked from it, not from here.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["offbeat.runtime.child"])
        # Interrupts are the launcher's to handle; the server inherits that they are blocked. The
        # tracker comes first, for its own start unblocks them.
        resource_tracker.ensure_running()
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        secret = secrets.token_bytes(32)
        hosts = self.world.hosts
        for host in range(self.world.host_count()):
            assignment = Assignment(
                experiment=self.experiment,
                host=host,
                sockets=self.sockets,
                journals=self.journals,
                secret=secret,
            )
            ours, theirs = context.Pipe()
            process = context.Process(target=main, args=(assignment, theirs), daemon=True)
            ranks = [rank for rank, at in enumerate(hosts) if at == host]
            self.members.append(Member(process, ours, ranks))
            process.start()
            theirs.close()

    def _assemble(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        self._await(lambda member: member.address is not None, deadline, "start")
        for member in self.members:
            assert member.layout is not None
            require_same_layout(self.world.layout, member.layout, self.members[0].names,
                                member.names)  # fmt: skip
        self.tickets = Tickets(self.sockets / "tickets", self.experiment.gradients)
        self._tell("addresses", {i: m.address for i, m in enumerate(self.members)})
        self._await(lambda member: member.connected, deadline, "find each other")
        self._began = time.monotonic_ns()
        self._tell("start", self._began)
        world = self.world
        start = [
            Snapshot(rank, rank in world.servers, world.part(rank, world.initial), {})
            for rank in [*world.workers, *world.servers]
        ]
        self._measure(0.0, start, [])

    def _await(self, done: Any, deadline: float, what: str) -> None:
        while not all(done(member) for member in self.members):
            self._listen(0.1)
            for member in self.members:
                if member.gone is not None or member.failed is not None:
                    raise RunError(f"{member.names} did not start: {member.failed or member.gone}")
            if time.monotonic() > deadline:
                late = ", ".join(member.names for member in self.members if not done(member))
                raise RunError(f"{late} did not {what} within {START_TIMEOUT:g} s")

    # Watching

    def _watch(self) -> None:
        """Until the budget is spent and all is quiet, or something fails."""
        while True:
            self._listen(0.02)
            self._bring_faults()
            self._evaluate_when_due()
            self._stop_when_due()
            live = self._live()
            if not live:
                raise RunError("no process is left: " + "; ".join(self.notes))
            if any(member.failed is not None for member in self.members):
                raise RunError(self._first_failure())
            self._require_heartbeats(live)
            if self._quiet(live) and self._asked_at is None:
                if not self._may_end(live):
                    raise RunError(self._deadlock(live))
                if self.stop_reason is None:
                    self.stop_reason = "samples"
                return

    def _first_failure(self) -> str:
        """One line for what went wrong first; deaths, which may be heard of later, explain it."""
        first = next(member for member in self.members if member.failed is not None)
        patience = time.monotonic() + 0.5
        while not self.notes and time.monotonic() < patience:
            self._listen(0.05)
        return "; ".join([str(first.failed), *self.notes])

    def _quiet(self, live: Sequence[Member]) -> bool:
        """Nobody computes, and every message sent has been received."""
        statuses = [member.status for member in live]
        if any(status is None or not status.idle for status in statuses):
            return False
        alive = {rank for member in live for rank in member.ranks}
        sent: dict[tuple[int, int], int] = {}
        received: dict[tuple[int, int], int] = {}
        for status in statuses:
            assert status is not None
            if not self._absent() <= status.departed:
                return False
            sent |= status.sent
            received |= status.received
        pairs = {pair for pair in sent | received if set(pair) <= alive}
        return all(sent.get(pair, 0) == received.get(pair, 0) for pair in pairs)

    def _absent(self) -> set[int]:
        return {rank for member in self.members if member.gone for rank in member.ranks}

    def _may_end(self, live: Sequence[Member]) -> bool:
        if self.stop_reason is not None:
            return True
        statuses = [member.status for member in live if member.status is not None]
        if self.experiment.method.synchronous and any(status.stuck for status in statuses):
            # Each worker has its share, and none needs another any more.
            return False
        return any(status.parked for status in statuses)

    def _deadlock(self, live: Sequence[Member]) -> str:
        now = time.monotonic()
        waits = [
            f"{wait}, last heartbeat {now - member.heard:.1f} s ago"
            for member in live
            for wait in (member.status.waiting if member.status else [])
        ]
        return (
            f"deadlock at {self._seconds:.3g} s: every role waits and no message is on its way: "
            + "; ".join(waits)
        )

    def _require_heartbeats(self, live: Sequence[Member]) -> None:
        now = time.monotonic()
        for member in live:
            if now - member.heard > PATIENCE:
                others = "; ".join(
                    f"{wait}, last heartbeat {now - other.heard:.1f} s ago"
                    for other in live
                    if other is not member
                    for wait in (other.status.waiting if other.status else [])
                )
                raise RunError(
                    f"{member.names} has given no sign of life for {now - member.heard:.0f} s; "
                    f"the others: {others or 'none'}"
                )

    @property
    def _seconds(self) -> float:
        return (time.monotonic_ns() - self._began) / 1e9

    def _live(self) -> list[Member]:
        return [member for member in self.members if member.gone is None]

    def _bring_faults(self) -> None:
        while self._faults and self._faults[0].at <= self._seconds:
            fault = self._faults.pop(0)
            member = next(m for m in self.members if fault.rank in m.ranks)
            if member.gone is not None:
                continue
            if fault.kind == "crash":
                os.kill(member.process.pid, signal.SIGKILL)
            elif fault.kind == "leave":
                self._send(member, "leave")
            else:
                self._send(member, "slow", fault.factor)
                self._recoveries.append((fault.until, fault.rank))
        for until, rank in list(self._recoveries):
            if until <= self._seconds:
                self._recoveries.remove((until, rank))
                self._send(next(m for m in self.members if rank in m.ranks), "slow", 1.0)

    def _stop_when_due(self) -> None:
        seconds = self.experiment.budget.seconds
        if seconds is not None and self._seconds >= seconds:
            self._stop("seconds")

    def _stop(self, why: str) -> None:
        if self.stop_reason is None:
            self.stop_reason = why
            self._tell("stop")

    def _evaluate_when_due(self) -> None:
        batch = self.experiment.problem.batch_size
        if self._asked_at is None:
            assert self.tickets is not None
            taken = self.tickets.taken * batch
            if taken >= self._next_evaluation and self.stop_reason is None:
                self._asked += 1
                self._answers.clear()
                self._asked_at = (self._seconds, taken)
                self._tell("snapshot", self._asked)
            return
        live = [i for i, member in enumerate(self.members) if member.gone is None]
        if all(i in self._answers for i in live):
            seconds, taken = self._asked_at
            self._asked_at = None
            self._next_evaluation = taken + self.experiment.evaluation_interval
            answers = [self._answers[i] for i in live]
            self._measure(seconds, [s for some, _ in answers for s in some],
                          [status for _, status in answers])  # fmt: skip

    def _measure(
        self, seconds: float, nodes: Sequence[Snapshot], statuses: Sequence[Status]
    ) -> None:
        try:
            row = self.world.measure(
                nodes,
                seconds,
                sum(status.computed for status in statuses) * self.experiment.problem.batch_size,
                sum(status.steps for status in statuses),
                sum(status.bytes_sent for status in statuses),
            )
        except ModelLost:
            return
        self.metrics.append(row)
        if self.progress is not None:
            self.progress(row)
        goal = self.experiment.budget.accuracy
        if goal is not None and row.accuracy >= goal:
            self._stop("accuracy")

    # Talking

    def _tell(self, word: str, *values: Any) -> None:
        for member in self._live():
            self._send(member, word, *values)

    def _send(self, member: Member, word: str, *values: Any) -> None:
        # A broken pipe is met again when it is read to its end, after what it still holds.
        with contextlib.suppress(OSError):
            member.pipe.send((word, *values))

    def _listen(self, timeout: float) -> None:
        pipes = {member.pipe: member for member in self.members if not member.pipe.closed}
        if not pipes:
            time.sleep(timeout)
            return
        for ready in wait(list(pipes), timeout):
            member = pipes[ready]
            try:
                while member.pipe.poll():
                    self._hear(member, *member.pipe.recv())
            except (EOFError, OSError):
                self._depart(member)

    def _hear(self, member: Member, word: str, *values: Any) -> None:
        member.heard = time.monotonic()
        if word == "ready":
            member.address, member.layout = values
        elif word == "connected":
            member.connected = True
        elif word == "status":
            member.status = values[0]
        elif word == "snapshots":
            asked, nodes, status = values
            member.status = status
            if asked == self._asked:
                self._answers[self.members.index(member)] = (nodes, status)
        elif word == "failed":
            member.failed = values[0]
        elif word == "trace":
            member.trace = values[0]
        elif word == "done":
            member.snapshots, member.trace, member.status, member.punctuality = values
            if self.stop_reason is None:
                # It leaves early; the others' connections stay open until all are done.
                self._send(member, "close")

    def _depart(self, member: Member) -> None:
        """The pipe has ended: the process is over."""
        if member.pipe.closed:
            return
        member.pipe.close()
        if member.snapshots is not None and self.stop_reason is not None:
            return
        member.process.join(2.0)
        code = member.process.exitcode
        kinds = "server" if min(member.ranks) in self.world.servers else "worker"
        if member.snapshots is not None:
            member.gone = "left"
        elif code is not None and code < 0:
            member.gone = f"was killed by {signal.Signals(-code).name}"
        else:
            member.gone = f"ended with exit code {code}"
        if member.failed is None and self._began:
            when = f" at {self._seconds:.2f} s"
            self.notes.append(f"{member.names} ({kinds}) {member.gone}{when}")

    # Ending

    def _collect(self) -> None:
        """Let everyone send its results home."""
        deadline = time.monotonic() + FAREWELL
        if self.stop_reason == "interrupted":
            while not self._quiet(self._live()) and time.monotonic() < deadline:
                self._listen(0.02)
        self._tell("finish")
        while any(member.snapshots is None for member in self._live()):
            self._listen(0.05)
            if time.monotonic() > deadline:
                break
        self._tell("close")

    def _end(self) -> None:
        if self.stop_reason == "error":
            # What was recorded is kept.
            self._tell("finish")
            patience = time.monotonic() + 1.0
            while any(m.trace is None for m in self._live()) and time.monotonic() < patience:
                self._listen(0.02)
        for member in self.members:
            if not member.pipe.closed and member.snapshots is None:
                self._send(member, "abort")
        self._tell("close")
        patience = FAREWELL if self._began and self.stop_reason != "error" else 1.0
        deadline = time.monotonic() + patience
        started = [member for member in self.members if member.process.pid is not None]
        while any(m.process.is_alive() for m in started) and time.monotonic() < deadline:
            # Whoever still reports must not wait for a reader.
            self._listen(0.02)
        for member in started:
            member.process.kill()
            member.process.join()
            member.pipe.close()
        if self.tickets is not None:
            self.tickets.close()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def _latenesses(self) -> list[str]:
        """Whose gradients could not keep to the times that were to be injected."""
        return [
            f"worker {rank}: {kept.late:,} of {kept.gradients:,} gradients took longer "
            "than injected"
            for member in self.members
            for rank, kept in sorted(member.punctuality.items())
            if kept.late
        ]

    def _result(self, error: str | None) -> Run:
        present = [m for m in self.members if m.snapshots is not None and m.gone is None]
        nodes = [snapshot for member in present for snapshot in member.snapshots or []]
        statuses = [member.status for member in present if member.status is not None]
        trace = Trace()
        for member in self.members:
            if member.trace is not None:
                trace.merge(member.trace)
        seconds = float(trace.gradients["end_ns"].max(initial=0)) / 1e9
        vector = self.world.initial
        with contextlib.suppress(ModelLost):
            if nodes:
                vector = self.experiment.method.model(nodes)
                self._measure(seconds, nodes, statuses)
        if error is None and (error := divergence(self.metrics)) is not None:
            self.stop_reason = "error"
        return Run(
            experiment=self.experiment,
            mode="processes",
            metrics=self.metrics,
            trace=trace,
            vector=vector.clone(),
            layout=self.world.layout,
            buffers=self.world.buffers(vector),
            seconds=seconds,
            stop=self.stop_reason or "finished",
            error=error,
            notes=[*self.world.notes, *self.notes, *self._latenesses()],
        )


def _require_sendable(experiment: Experiment) -> None:
    """Raise ValueError unless the children can be given that experiment."""
    try:
        ForkingPickler.dumps(experiment)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the experiment cannot be sent to processes ({reason}): define functions and classes "
            "at the top level of a file, and give arguments by functools.partial instead of lambda"
        ) from error


@contextlib.contextmanager
def uninterrupted() -> Generator[None]:
    """Ignore interrupts, where they arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def require_same_layout(expected: Layout, found: Layout, expected_at: str, found_at: str) -> None:
    """Every node must hold the same model.

    Raises:
        RunError: naming the first parameter that differs, and both shapes.
    """
    if expected == found:
        return
    ours = dict(zip(expected.names, expected.shapes, strict=True))
    theirs = dict(zip(found.names, found.shapes, strict=True))
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if ours.get(name) != theirs.get(name):
            raise RunError(
                f"the models differ: parameter {name} has shape {ours.get(name, 'none')} on "
                f"{expected_at} and {theirs.get(name, 'none')} on {found_at}"
            )
    raise RunError(
        f"the models differ: {expected_at} and {found_at} order their parameters differently"
    )


def run_processes(
    experiment: Experiment, directory: Path | None = None, progress: Progress | None = None
) -> Run:
    """Run an experiment as processes on this machine, and wait for it.

    With `directory` each node's journal is kept there, for `replay`. Links are this machine's own,
    and so are workers' speeds unless the experiment says `inject`. Faults happen: crash is SIGKILL.
    """
    return Launcher(experiment, directory, progress).run()
