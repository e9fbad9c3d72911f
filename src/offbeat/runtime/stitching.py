"""Stitching: pieces that lie in several hosts' slots, read as one tensor without a copy.

A region of addresses is reserved, and the pages of each piece are mapped into it where they
belong. Like a received payload it is mapped privately: whoever writes to it gets copies of the
pages that he writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .garbage import when_garbage
from .pages import Pagemap
from .slots import Place

PAGE = mmap.PAGESIZE
REGIONS_KEPT = 16
"""Slots take turns, so the same few combinations come back."""
_MAP_FIXED = 0x10
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


def padding(start: int) -> int:
    """Bytes into a page at which a piece has to begin that comes `start` bytes into the whole."""
    return start % PAGE


class Stitcher:
    """Joins pieces. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[tuple[Any, ...], _Region] = OrderedDict()
        # A finalizer runs anywhere, even in a thread that holds the lock: it only appends here.
        self._read: deque[_Region] = deque()
        self._pagemap = Pagemap()

    def join(
        self, pieces: Sequence[Tensor], places: Sequence[Place], *, read_only: bool = False
    ) -> Tensor | None:
        """The flat pieces of one dtype one after the other; None if they cannot be mapped so.

        The k-th has to begin in its slot's page where it will lie in a page of the whole
        (`padding`). What is read is copied at the edges only, of less than a page each. Unless the
        caller says that it is `read_only`, it is looked whether it was written.
        """
        starts = [0]
        for piece in pieces:
            starts.append(starts[-1] + piece.nbytes)
        fitting = all(p.offset % PAGE == s % PAGE for p, s in zip(places, starts, strict=False))
        if not fitting or starts[-1] < PAGE:
            return None
        key = tuple(
            (id(p.slot), p.offset, piece.nbytes) for p, piece in zip(places, pieces, strict=True)
        )
        with self._lock:
            self._tidy()
            region = self._idle.pop(key, None)
        if region is None:
            try:
                region = _Region(key, places, starts)
            except OSError:
                return None
        region.read_only = read_only
        lent = region.lend(pieces, self._read)
        return torch.frombuffer(lent, dtype=pieces[0].dtype)

    def close(self) -> None:
        """Let go of all regions; tensors in them live on until they are garbage."""
        with self._lock:
            self._idle.clear()
            self._read.clear()
            self._pagemap.close()

    def _tidy(self) -> None:
        while self._read:
            region = self._read.popleft()
            with contextlib.suppress(OSError):  # Locked pages cannot be cleaned: it is let go.
                region.clean(self._pagemap)
                self._idle[region.key] = region
        while len(self._idle) > REGIONS_KEPT:
            self._idle.popitem(last=False)


class _Region:
    """Addresses into which pieces are mapped; their edges are copied into pages of its own.

    Raises:
        OSError: the system does not map them.
    """

    def __init__(
        self, key: tuple[Any, ...], places: Sequence[Place], starts: Sequence[int]
    ) -> None:
        self.key = key
        self.slots = [place.slot for place in places]
        """Kept, so that the key names no other slot."""
        self.starts = starts
        self.mapped: list[tuple[int, int]] = []
        """First and last byte of whole pages of one piece."""
        self.read_only = False
        """Nobody writes to what is lent."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.memory = mmap.mmap(-1, -(-starts[-1] // PAGE) * PAGE, flags=flags)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for place, start, end in zip(places, starts, starts[1:], strict=False):
            first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
            if first < last:
                self._map(place.fd, place.offset + first - start, first, last)
                self.mapped.append((first, last))

    def _map(self, fd: int, offset: int, first: int, last: int) -> None:
        found = _LIBC.mmap(
            self.address + first,
            last - first,
            mmap.PROT_READ | mmap.PROT_WRITE,
            mmap.MAP_PRIVATE | _MAP_FIXED,
            fd,
            offset,
        )
        if found != self.address + first:
            raise OSError(ctypes.get_errno(), f"cannot map {last - first} bytes of a slot")

    def lend(self, pieces: Sequence[Tensor], returned: deque[_Region]) -> Any:
        """Its bytes, as a ctypes array; it is appended to `returned` when that is garbage."""
        for piece, start, end in zip(pieces, self.starts, self.starts[1:], strict=False):
            first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
            if first >= last:
                first = last = end
            for begin, stop in ((start, first), (last, end)):
                if begin < stop:
                    source = piece.data_ptr() + begin - start
                    ctypes.memmove(self.address + begin, source, stop - begin)
        lent = (ctypes.c_ubyte * self.starts[-1]).from_buffer(self.memory)
        when_garbage(lent, _return, self, returned, pieces)
        return lent

    def clean(self, pagemap: Pagemap) -> None:
        """Undo what was written to mapped pages.

        Raises:
            OSError: the system does not let go of them.
        """
        for first, last in () if self.read_only else self.mapped:
            if pagemap.has_private(self.address + first, last - first):
                self.memory.madvise(mmap.MADV_DONTNEED, first, last - first)


def _return(region: _Region, returned: deque[_Region], pieces: Sequence[Tensor]) -> None:
    """The pieces, which are kept until now, are free too."""
    returned.append(region)
