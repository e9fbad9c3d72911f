"""Cores: how many there are, and how many threads this process has for them."""

import os


def cores_here() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_here() -> int:
    """Of all kinds, Python's or not, in this process; 0 where the system does not say it."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0
