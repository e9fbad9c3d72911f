"""Memory: large temporaries are given the same pages again, instead of new ones at every step.

glibc returns the memory of a large freed tensor to the system, and the next tensor of that size
begins with page faults, which cost more than what is then done with it.
"""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8

TOP_PAD = 64 << 20
"""Bytes by which the heap grows at least."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next tensors; whether the C library can.

    For processes that do one thing for long: memory once used is not returned to the system. It
    does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {
        _M_MMAP_MAX: 0,  # Everything from the heap, nothing in a mapping of its own.
        _M_TRIM_THRESHOLD: -1,
        _M_TOP_PAD: TOP_PAD,
        _M_ARENA_MAX: 1,  # Else every thread has a heap, and keeps what it freed to itself.
    }
    accepted = [mallopt(option, value) for option, value in settings.items()]
    return all(accepted)
