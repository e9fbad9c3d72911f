"""Spawning: the processes that one machine gives to a run; started, watched and ended here."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import secrets
import select
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ..experiment import Experiment
from .assignment import Assignment
from .errors import RunError
from .forks import forget_server, server_of_forks


def socket_names() -> str:
    """How the Unix sockets of one run's processes on this machine are called: "unix:@.../{host}".

    They have no files, so that nothing of them is left, whoever is killed.
    """
    return f"unix:@offbeat-{os.getpid()}-{secrets.token_hex(8)}"


KILLED_SECONDS = 10.0
"""In which a process ends that was killed."""
LOST_CODE = 255
"""What `multiprocessing` says of a process whose exit code it does not learn."""


class _Started:
    """One process, looked at and killed by a descriptor of its own (pidfd).

    What `multiprocessing` knows of it comes from the server that forked it, whose end it takes for
    that of all its processes: it would leave them alone.
    """

    def __init__(self, process: Any, lifeline: Any) -> None:
        self.process = process
        self.lifeline = lifeline
        """It ends when the other end of this pipe does."""
        self.reported = False
        self._handle: int | None = None

    def start(self) -> None:
        self.process.start()
        with contextlib.suppress(ProcessLookupError):  # It has ended already.
            self._handle = os.pidfd_open(self.process.pid)

    @property
    def end(self) -> int:
        """A descriptor that can be read once it has ended."""
        return self.process.sentinel if self._handle is None else self._handle

    def has_ended(self, patience: float = 0.0) -> bool:
        """Whether it has, or does within so many seconds."""
        if self._handle is None:
            return True
        waiting = select.poll()
        waiting.register(self._handle, select.POLLIN)
        return bool(waiting.poll(1e3 * patience))

    def kill(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def close(self) -> None:
        self.lifeline.close()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _main(assignment: Assignment, lifeline: Any) -> None:
    forget_server()
    # Imported in the server of forks; here nobody needs it, nor the second that it takes.
    from .child_process import main

    main(assignment, lifeline)


class Spawner:
    """The processes that this one has started."""

    def __init__(self) -> None:
        self._started: dict[int, _Started] = {}
        self._ends = select.poll()
        """Of what can be read once a process has ended; exit codes take long to ask for."""

    def start(self, assignments: Iterable[Assignment]) -> None:
        """Start one process for each assignment.

        Raises:
            RunError: this one may start none.
        """
        if multiprocessing.current_process().daemon:
            raise RunError(
                "this process is a daemon of multiprocessing, which may start no others: start the "
                "run in one with daemon=False, or simulate it"
            )
        assignments = list(assignments)
        context = server_of_forks(
            name for assignment in assignments for name in assignment.experiment.problem.imports
        )
        for assignment in assignments:
            ours, theirs = context.Pipe()
            process = context.Process(target=_main, args=(assignment, theirs), daemon=True)
            self._forget(assignment.host)
            if (before := self._started.get(assignment.host)) is not None:
                before.close()
            started = self._started[assignment.host] = _Started(process, ours)
            started.start()
            self._ends.register(started.end, select.POLLIN)
            theirs.close()

    def __contains__(self, host: int) -> bool:
        return host in self._started

    def kill(self, host: int) -> None:
        self._started[host].kill()

    def ended(self) -> dict[int, str]:
        """How processes have ended since this was asked last, by host."""
        found: dict[int, str] = {}
        if not self._ends.poll(0):
            return found
        for host, started in self._started.items():
            if started.reported or not started.has_ended():
                continue
            code = started.process.exitcode  # Which the server tells a moment later.
            if code is not None:
                self._forget(host)
                found[host] = _said(started.lifeline) or _how(code)
        return found

    def _forget(self, host: int) -> None:
        """Ask no more how that process has ended."""
        started = self._started.get(host)
        if started is not None and not started.reported:
            started.reported = True
            with contextlib.suppress(KeyError, ValueError):  # It may not have started.
                self._ends.unregister(started.end)

    def end(self, patience: float, meanwhile: Callable[[], object]) -> None:
        """Wait until all are over, `patience` seconds at most, then kill those that are not."""
        deadline = time.monotonic() + patience
        running = [s for s in self._started.values() if s.process.pid is not None]
        while not all(s.has_ended() for s in running) and time.monotonic() < deadline:
            meanwhile()
        for started in running:
            started.kill()
            started.has_ended(KILLED_SECONDS)
            started.process.join(KILLED_SECONDS)
            started.close()
        self._started.clear()
        self._ends = select.poll()


def _said(lifeline: Any) -> str | None:
    """What a process said before its end, if it could not say it otherwise."""
    try:
        return lifeline.recv_bytes().decode() if lifeline.poll() else None
    except (EOFError, OSError):
        return None


def _how(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    if code == LOST_CODE:
        return f"ended with exit code {code}, or with the process that forks the others, which knew"
    return f"ended with exit code {code}"


def require_sendable(experiment: Experiment) -> None:
    """Raise ValueError unless processes can be given that experiment."""
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
