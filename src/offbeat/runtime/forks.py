"""Forks: the server that a machine's processes are forked from, having imported everything once."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Generator, Iterable, Sequence
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import ForkServerContext

import torch

from ..cores import files_here, threads_here

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


def forget_server() -> None:
    """In a process that was forked: lose what only the server was to have."""
    if os.environ.get(_SAFE_PATH) == _FOR_SERVER:
        del os.environ[_SAFE_PATH]


_IMPORTED = threads_here(), files_here()
"""With those that packages begin as they are imported, and have prepared for forks."""


def fork_server_of_forks(device: str, imports: Iterable[str] = ()) -> None:
    """Have processes that will compute on a device forked from a fork of this one, made now.

    A new interpreter would import everything once more, which takes seconds. But a fork has none
    of its parent's threads and may await them forever; it has none of the files that modules of the
    user's have opened; nor can it use a GPU that the parent has touched. So for a GPU, or if there
    are threads or files that were not there after the imports, this does nothing.
    """
    if (threads_here(), files_here()) == _IMPORTED and torch.device(device).type == "cpu":
        # It is no server of forks, and needs nothing that was imported.
        resource_tracker.ensure_running()
        with _forked_not_executed():
            server_of_forks(imports)


@contextlib.contextmanager
def _forked_not_executed() -> Generator[None]:
    """Where multiprocessing would start Python anew, for some code, this process is forked."""
    execute = util.spawnv_passfds
    util.spawnv_passfds = _fork
    try:
        yield
    finally:
        util.spawnv_passfds = execute


def _fork(path: str, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """In place of `multiprocessing.util.spawnv_passfds`, for `python -c CODE`."""
    for stream in (sys.stdout, sys.stderr):
        # What it still holds would be written by each fork as well.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        streams = enumerate((sys.__stdin__, sys.__stdout__, sys.__stderr__))
        # Where one was closed from the start its number is another file's.
        kept = sorted({*passed, *(fd for fd, stream in streams if stream is not None)})
        for below, above in itertools.pairwise([-1, *kept, os.sysconf("SC_OPEN_MAX")]):
            if below + 1 < above:  # It closes everything if asked for nothing below 0.
                os.closerange(below + 1, above)
        # Its lock is held, and what it knows is about the parent's children.
        forkserver._forkserver.__init__()
        exec(arguments[-1], {})
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)
