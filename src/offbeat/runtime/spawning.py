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
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ..experiment import Experiment
from .assignment import Assignment

PRELOADED = ("offbeat.runtime.child_process", "offbeat.methods")
"""Imported once, before the processes are forked: what takes each of them seconds otherwise."""
_SAFE_PATH = "PYTHONSAFEPATH"
_FOR_SERVER = "offbeat"
"""Its value if only the server of forks has it, and whoever it forks is to lose it."""


def server_of_forks(imports: Iterable[str] = ()) -> ForkServerContext:
    """Starts processes that are forked from one which has imported torch, and not from this one.

    Args:
        imports: modules that it is to import as well. It runs until this process ends, so what
            later calls add is imported by each of their processes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *sorted(set(imports))])
    # Interrupts are for whoever started it to handle; it inherits that they are blocked. The
    # tracker comes first, for its own start unblocks them.
    resource_tracker.ensure_running()
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    safe = os.environ.get(_SAFE_PATH)
    # Python would look for modules in the current folder first, where the user's own may be.
    os.environ[_SAFE_PATH] = safe or _FOR_SERVER
    try:
        forkserver.ensure_running()
    finally:
        if safe is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = safe
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    return context


def socket_names() -> str:
    """How the Unix sockets of one run's processes on this machine are called: "unix:@.../{host}".

    They have no files, so that nothing of them is left, whoever is killed.
    """
    return f"unix:@offbeat-{os.getpid()}-{secrets.token_hex(8)}"


@dataclass(eq=False)
class _Started:
    process: Any
    lifeline: Any
    """It ends when the other end of this pipe does."""
    reported: bool = False


def _main(assignment: Assignment, lifeline: Any) -> None:
    if os.environ.get(_SAFE_PATH) == _FOR_SERVER:
        del os.environ[_SAFE_PATH]
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
        """Start one process for each assignment."""
        assignments = list(assignments)
        context = server_of_forks(
            name for assignment in assignments for name in assignment.experiment.problem.imports
        )
        for assignment in assignments:
            ours, theirs = context.Pipe()
            process = context.Process(target=_main, args=(assignment, theirs), daemon=True)
            self._forget(assignment.host)
            self._started[assignment.host] = _Started(process, ours)
            process.start()
            self._ends.register(process.sentinel, select.POLLIN)
            theirs.close()

    def __contains__(self, host: int) -> bool:
        return host in self._started

    def kill(self, host: int) -> None:
        self._started[host].process.kill()

    def ended(self) -> dict[int, str]:
        """How processes have ended since this was asked last, by host."""
        found: dict[int, str] = {}
        if not self._ends.poll(0):
            return found
        for host, started in self._started.items():
            code = None if started.reported else started.process.exitcode
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
                self._ends.unregister(started.process.sentinel)

    def end(self, patience: float, meanwhile: Callable[[], object]) -> None:
        """Wait until all are over, `patience` seconds at most, then kill those that are not."""
        deadline = time.monotonic() + patience
        running = [s for s in self._started.values() if s.process.pid is not None]
        while any(s.process.is_alive() for s in running) and time.monotonic() < deadline:
            meanwhile()
        for started in running:
            started.process.kill()
            started.process.join()
            started.lifeline.close()
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
