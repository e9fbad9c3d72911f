"""Tickets: how many gradients the workers of a run may still ask for together."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

_COUNT = struct.Struct("<q")


class Tickets:
    """A counter that the processes of one machine share.

    It lies in memory without a name (a memfd), which is there as long as a process holds it. As an
    argument of a `multiprocessing.Process` the object is the same counter in the child. The lock
    is the kernel's: it is released when its holder is killed.
    """

    def __init__(self, allowed: float, taken: int = 0) -> None:
        self._hold(os.memfd_create("offbeat-tickets"), allowed)
        self.set(taken)

    def _hold(self, fd: int, allowed: float) -> None:
        self._fd, self._allowed = fd, allowed

    def __reduce__(self) -> tuple[Callable[..., Tickets], tuple[Any, ...]]:
        return _attach, (reduction.DupFd(self._fd), self._allowed)

    def take(self) -> bool:
        """Take one; False if none is left."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            taken = self.taken
            if taken >= self._allowed:
                return False
            os.pwrite(self._fd, _COUNT.pack(taken + 1), 0)
            return True
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def set(self, taken: int) -> None:
        """So many have been taken."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            os.pwrite(self._fd, _COUNT.pack(taken), 0)
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    @property
    def taken(self) -> int:
        stored = os.pread(self._fd, _COUNT.size, 0)
        return _COUNT.unpack(stored)[0] if stored else 0

    @property
    def spent(self) -> bool:
        return self.taken >= self._allowed

    def close(self) -> None:
        os.close(self._fd)


def _attach(duplicate: Any, allowed: float) -> Tickets:
    """The same counter, in the process that has been given the descriptor."""
    tickets = Tickets.__new__(Tickets)
    tickets._hold(duplicate.detach(), allowed)
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
