"""Huge pages: a process that goes on for a while gets its memory in pages of two megabytes.

A step of a small model touches thousands of small pages all over Python's and torch's memory, more
than a processor has the addresses of at hand. The system would do this by itself where it is told
to, but takes minutes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np

SETTLED_SECONDS = 5.0
"""What lives for less than that is not worth it: it takes a third of a second."""
MOST_SECONDS = 1.0
"""For a process of much memory; its oldest, Python's and torch's own, comes first."""
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
_MADV_COLLAPSE = 25  # Of <linux/mman.h>, since Linux 6.1.


class HugePages:
    """Moves the process's memory, once, at a `tick`.

    Nothing happens where the system's administrator or its age forbid it.
    """

    def __init__(self) -> None:
        self._due = time.monotonic() + SETTLED_SECONDS

    @classmethod
    def of_one_of(cls, processes: int) -> Self | None:
        """For one of so many processes on a machine; None where there are more than cores.

        They are no serious job, and would each take some memory that they share until then.
        """
        return cls() if processes <= (os.cpu_count() or 1) else None

    def tick(self) -> None:
        if time.monotonic() >= self._due:
            self._due = float("inf")
            move(MOST_SECONDS)


def move(seconds: float) -> int:
    """Move what is in memory now, for so many seconds at most; how many pages were moved.

    A huge page takes all of its memory. Where most of that is not in use, nothing is moved.
    """
    try:
        size, regions = _size(), list(_regions())
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            return _move(size, regions, pagemap.fileno(), seconds) if size else 0
    except (OSError, ValueError):
        return 0


def _move(size: int, regions: Iterable[tuple[int, int]], pagemap: int, seconds: float) -> int:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    moved, deadline = 0, time.monotonic() + seconds
    for first, last in regions:
        for address in range(-(-first // size) * size, last // size * size, size):
            if time.monotonic() > deadline:
                return moved
            if _used(pagemap, address, size) > size // 2:
                moved += madvise(address, size, _MADV_COLLAPSE) == 0
    return moved


def _used(pagemap: int, address: int, size: int) -> int:
    """How many of these bytes are in memory."""
    entries, first = size // mmap.PAGESIZE, address // mmap.PAGESIZE
    pages = np.frombuffer(os.pread(pagemap, entries * 8, first * 8), dtype=np.uint64)
    return int(np.count_nonzero(pages >> np.uint64(63))) * mmap.PAGESIZE


def _size() -> int:
    """Bytes of a huge page; 0 if there are to be none."""
    if "[never]" in (_SYSTEM / "enabled").read_text():
        return 0
    return int((_SYSTEM / "hpage_pmd_size").read_text())


def _regions() -> Iterator[tuple[int, int]]:
    """First and last address of each piece of memory that is this process's, and of no file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, _, *name = line.split(None, 5)
        if permissions == "rw-p" and (not name or name[0].startswith(("[heap]", "[anon"))):
            first, last = (int(address, 16) for address in addresses.split("-"))
            yield first, last
