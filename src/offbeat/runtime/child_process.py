"""Child process: a child's whole life, which ends with the process that started it."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import threading
from typing import Any

import torch

from . import control
from .assignment import Assignment
from .child import Child
from .memory import keep_freed_memory


def is_over(pipe: Any, seconds: float | None = 0.0) -> bool:
    """Whether the other end of a pipe is closed, or is within that time; reads nothing from it."""
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(None if seconds is None else 1000 * seconds))


def _end_with_parent(assignment: Assignment, lifeline: Any) -> None:
    """Once the process that started this one is gone, nobody is left to clean up after it."""
    is_over(lifeline, None)
    _clean_up(assignment)
    os._exit(1)


def _clean_up(assignment: Assignment) -> None:
    if assignment.scratch is not None:
        shutil.rmtree(assignment.scratch, ignore_errors=True)


def main(assignment: Assignment, lifeline: Any) -> None:
    """A child's whole life."""
    # A thread of its own, for a role that blocks may hold the host's lock.
    threading.Thread(target=_end_with_parent, args=(assignment, lifeline), daemon=True).start()
    try:
        _live(assignment, lifeline)
    finally:
        if is_over(lifeline):
            _clean_up(assignment)
        # Taking the interpreter down with torch in it takes longer than many a run.
        for stream in (sys.stdout, sys.stderr):
            # Closed ones are None, and what they led to may be full or gone.
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(0)


def _live(assignment: Assignment, lifeline: Any) -> None:
    # The coordinator decides what an interrupt means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(assignment.experiment.threads)
    keep_freed_memory()
    try:
        child = Child(assignment)
    except Exception as error:
        # There is no connection yet over which to say it.
        lifeline.send_bytes(f"{type(error).__name__}: {error}".encode())
        return
    try:
        child.run()
    except (SystemExit, ConnectionError) as error:
        if isinstance(error, ConnectionError):
            lifeline.send_bytes(str(error).encode())
            child.tell(control.Failed(text=str(error)))
    except Exception as error:
        child.tell(control.Failed(text=f"host {assignment.host}: {type(error).__name__}: {error}"))
    finally:
        child.host.abort()
