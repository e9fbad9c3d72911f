"""Changed: a condition whose notices cost nothing where nobody waits."""

from __future__ import annotations

import threading


class Changed(threading.Condition):
    """As `threading.Condition`, whose `notify_all` looks for who waits in five calls."""

    _waiting = 0

    def wait(self, timeout: float | None = None) -> bool:
        self._waiting += 1
        try:
            return super().wait(timeout)
        finally:
            self._waiting -= 1

    def notify_all(self) -> None:
        if self._waiting:
            super().notify_all()
