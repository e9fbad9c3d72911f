"""Tickets: how many gradients the workers of a run may still ask for together."""

from __future__ import annotations

import array
import fcntl
import math
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing import reduction
from typing import Any

_CELLS = 512
"""The first counts the others that belong to a process, the second is for all who have none."""


class Tickets:
    """A counter that the processes of one machine share.

    It lies in memory without a name (a memfd), which is there as long as a process holds it. As an
    argument of a `multiprocessing.Process` the object is the same counter in the child. Where there
    is no end of tickets each process counts in a cell of its own. Else they take turns by a
    lock of the kernel's: it is released when its holder is killed.
    """

    def __init__(self, allowed: float, taken: int = 0) -> None:
        fd = os.memfd_create("offbeat-tickets")
        os.ftruncate(fd, _CELLS * 8)
        self._hold(fd, allowed)
        self._cells[0] = 2
        self._own = 1
        self.set(taken)

    def _hold(self, fd: int, allowed: float) -> None:
        self._fd, self._allowed = fd, allowed
        self._memory = mmap.mmap(fd, _CELLS * 8)
        self._cells = memoryview(self._memory).cast("q")

    def __reduce__(self) -> tuple[Callable[..., Tickets], tuple[Any, ...]]:
        return _attach, (reduction.DupFd(self._fd), self._allowed)

    def take(self) -> bool:
        """Take one; False if none is left."""
        if self._own > 1 and self._allowed == math.inf:
            self._cells[self._own] += 1
            return True
        with self._locked():
            if self.spent:
                return False
            self._cells[1] += 1
            return True

    def set(self, taken: int) -> None:
        """So many have been taken; meanwhile nobody takes any."""
        with self._locked():
            cells = self._cells[0]
            self._cells[1:cells] = memoryview(array.array("q", [taken, *[0] * (cells - 2)]))

    @property
    def taken(self) -> int:
        return sum(self._cells[1 : self._cells[0]])

    @property
    def spent(self) -> bool:
        return self.taken >= self._allowed

    def close(self) -> None:
        self._cells.release()
        self._memory.close()
        os.close(self._fd)

    @contextmanager
    def _locked(self) -> Generator[None]:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _claim(self) -> None:
        """Have a cell of one's own, while there are any."""
        with self._locked():
            self._own = 1
            if self._cells[0] < _CELLS:
                self._own = self._cells[0]
                self._cells[0] += 1


def _attach(duplicate: Any, allowed: float) -> Tickets:
    """The same counter, in the process that has been given the descriptor."""
    tickets = Tickets.__new__(Tickets)
    tickets._hold(duplicate.detach(), allowed)
    tickets._claim()
    return tickets


class LeasedTickets:
    """Tickets that a coordinator on another machine grants, some in advance.

    Args:
        ask: sends for so many.
        on_wait: told that this thread is going to wait for them, and hears nothing meanwhile.
    """

    AHEAD = 0.1
    """Seconds for which tickets are kept in store."""

    def __init__(self, ask: Callable[[int], None], on_wait: Callable[[], None]) -> None:
        self._ask, self._on_wait = ask, on_wait
        self._changed = threading.Condition()
        self._held = 0
        self._asked_for = 0
        self._last = False
        self._times: deque[float] = deque(maxlen=64)

    def take(self) -> bool:
        """Take one, waiting for it if need be; False if none is left."""
        with self._changed:
            now = time.monotonic()
            self._times.append(now)
            recent = sum(now - then < self.AHEAD for then in self._times)
            wanting = 1 + recent - self._held - self._asked_for
            if wanting > 0 and not self._last:
                self._asked_for += wanting
                self._ask(wanting)
            if not self._held and not self._last:
                self._on_wait()
                self._changed.wait_for(lambda: self._held or self._last)
            if self._held:
                self._held -= 1
                return True
            return False

    def granted(self, count: int, *, last: bool) -> None:
        with self._changed:
            self._asked_for = max(0, self._asked_for - count)
            self._held += count
            self._last |= last
            self._changed.notify_all()

    def reset(self) -> None:
        """Forget what is in store, and that there will be no others: the count goes back."""
        with self._changed:
            self._held = self._asked_for = 0
            self._last = False

    def end(self) -> None:
        """Nobody waits any more."""
        self.granted(0, last=True)

    def close(self) -> None:
        """There is nothing to let go of."""
