"""Waker: ends another thread's epoll wait."""

import os
import threading


class Waker:
    """A counter (eventfd) that becomes readable at `wake`; it may be closed at any moment."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # A finalizer may interrupt `wake` and call it: hence reentrant. Never held for long.
        self._lock = threading.RLock()
        self._open = True

    def wake(self) -> None:
        """Without effect once it is closed: the descriptor's number may be another file's then."""
        with self._lock:
            if self._open:
                os.eventfd_write(self.fd, 1)

    def sleep(self) -> None:
        """Take back what `wake` did."""
        os.eventfd_read(self.fd)

    def close(self) -> None:
        with self._lock:
            if self._open:
                self._open = False
                os.close(self.fd)

    def forget(self) -> None:
        """In a forked child, where the lock may be held, for ever, by a thread that is not here."""
        self._lock = threading.RLock()
        self.close()
