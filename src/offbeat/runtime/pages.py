"""Pages: which of a privately mapped file's pages this process has made its own by writing."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from functools import lru_cache

import numpy as np

_IN_MEMORY_OR_SWAP, _OF_FILE = np.uint64(3 << 62), np.uint64(1 << 61)
_ENTRY_BYTES = 8

# PAGEMAP_SCAN of <linux/fs.h>, since Linux 6.7: it stops at the first page found.
_SCAN = 0xC0606610
_SCAN_ARGUMENT = struct.Struct("12Q")
_IS_FILE, _IS_PRESENT, _IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4


class Pagemap:
    """What the system says of this process's pages (/proc/self/pagemap)."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._scans = True
        self._found = ctypes.create_string_buffer(24)
        # The same few mappings come back.
        self._argument = lru_cache(maxsize=64)(self._packed)

    def has_private(self, address: int, length: int) -> bool:
        """Whether some page of these was written, and so is no longer the file's.

        True also where the system does not say.
        """
        try:
            if self._fd is None:
                self._fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            if self._scans:
                try:
                    return self._scan(self._fd, address, length)
                except OSError:
                    self._scans = False
            return self._read(self._fd, address, length)
        except OSError:
            return True

    def _scan(self, fd: int, address: int, length: int) -> bool:
        """Whether there is one page that is in memory, or in swap, and of no file."""
        return fcntl.ioctl(fd, _SCAN, self._argument(address, length)) > 0

    def _packed(self, address: int, length: int) -> bytearray:
        packed = _SCAN_ARGUMENT.pack(
            _SCAN_ARGUMENT.size,
            0,  # flags
            address,
            address + length,
            0,  # where the walk ended
            ctypes.addressof(self._found),
            1,  # regions to be named
            1,  # pages to be found
            _IS_FILE,  # inverted
            _IS_FILE,
            _IS_PRESENT | _IS_SWAPPED,  # either
            _IS_PRESENT,
        )
        return bytearray(packed)

    def _read(self, fd: int, address: int, length: int) -> bool:
        entries, first = -(-length // mmap.PAGESIZE), address // mmap.PAGESIZE
        content = os.pread(fd, entries * _ENTRY_BYTES, first * _ENTRY_BYTES)
        pages = np.frombuffer(content, dtype=np.uint64)
        private = ((pages & _IN_MEMORY_OR_SWAP) != 0) & ((pages & _OF_FILE) == 0)
        return len(pages) != entries or bool(private.any())

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
