"""Cores: how many there are, and what this process has: threads, open files."""

import os


def cores_here() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_here() -> int:
    """Of all kinds, Python's or not, in this process; 0 where the system does not say it."""
    return _entries("/proc/self/task")


def files_here() -> int:
    """Descriptors that are open in this process; 0 where the system does not say it."""
    return _entries("/proc/self/fd")


def _entries(folder: str) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0
