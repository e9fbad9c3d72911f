"""Tickets: how many gradients the workers of one machine may still ask for together."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_COUNT = struct.Struct("<q")


class Tickets:
    """A counter in a file that processes share.

    The lock is the kernel's: it is released when its holder is killed.
    """

    def __init__(self, path: Path, allowed: float) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._allowed = allowed

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

    @property
    def taken(self) -> int:
        stored = os.pread(self._fd, _COUNT.size, 0)
        return _COUNT.unpack(stored)[0] if stored else 0

    @property
    def spent(self) -> bool:
        return self.taken >= self._allowed

    def close(self) -> None:
        os.close(self._fd)
