"""Work shared out over processes, which end with the one that shares it."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerKilled(RuntimeError):
    """A process that shared the work is gone, with no word from it."""


class Share(Protocol):
    """`share(function, items)`: the results, in the order of the items."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item], /
    ) -> Iterator[Result]: ...


@contextmanager
def shared(jobs: int) -> Generator[Share]:
    """Share work over that many processes; with one job it is all done here.

    They live no longer than this process, however it ends. If the block is left by an exception,
    such as an interrupt, they end at once in the middle of what they do.

    Raises:
        WorkerKilled: from the iteration over the results.
    """
    if jobs == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    # Nothing is ever sent. When the last writing end is closed, the children see it.
    watched, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, context, _begin, (watched,))
    try:
        yield functools.partial(_in_order, pool)
    except BaseException:
        lifeline.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        lifeline.close()
        watched.close()


def _in_order(
    pool: ProcessPoolExecutor, function: Callable[[Any], Any], items: Sequence[Any]
) -> Iterator[Any]:
    futures = list[Future[Any]]()
    # Children start here, and keep the mask: the parent decides what an interrupt means.
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        futures += [pool.submit(function, item) for item in items]
    except BrokenProcessPool:
        raise _killed() from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    for future in futures:
        try:
            yield future.result()
        except BrokenProcessPool:
            raise _killed() from None


def _killed() -> WorkerKilled:
    return WorkerKilled(
        "a process that shared the work was killed; if memory ran out, use fewer jobs"
    )


def _begin(watched: Any) -> None:
    threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()


def _end_with_parent(watched: Any) -> None:
    watched.poll(None)
    os._exit(1)
