"""Mappings: other hosts' slots, read in place.

A slot is mapped privately: its pages are the sender's own until the receiver writes one, and then
that page alone becomes a copy. So a received payload is the receiver's, at no cost unless used.
Where a payload is given, not lent, its receiver writes to the sender's pages themselves.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import socket
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from .framing import FrameError
from .garbage import when_garbage
from .pages import Pagemap
from .slots import SEALS, Place, Return

SLOT_LIMIT = 64
"""Slots that one host may have us map."""
BYTE_LIMIT = 1 << 38
"""Address space that one host may have us map; the memory is the sender's."""
PUT_OFF = 4
"""Loans that were read and need not be tidied up before there is time. The pages of those that were
written are copies, which take up memory until then."""
DESCRIPTORS_PER_READ = 4
_DESCRIPTOR_BYTES = array.array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS_PER_READ * _DESCRIPTOR_BYTES)
_TRUNCATED = int(socket.MSG_CTRUNC)  # With the enumeration's own member `&` takes microseconds.


class DescriptorReceiver:
    """Receives bytes, and the descriptors that come with them."""

    def __init__(self) -> None:
        self._arrived: deque[int] = deque()

    def __call__(self, sock: socket.socket, buffer: memoryview) -> int:
        """As `recv_into`.

        Raises:
            FrameError: more descriptors came than may, or than this process may have.
        """
        count, ancillary, flags, _ = sock.recvmsg_into([buffer], _ANCILLARY_BYTES)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(content) - len(content) % _DESCRIPTOR_BYTES
                self._arrived.extend(array.array("i", content[:whole]))
        if flags & _TRUNCATED or len(self._arrived) > DESCRIPTORS_PER_READ:
            raise FrameError("more descriptors than may be, or than `ulimit -n` allows")
        return count

    def take(self) -> int:
        """The next descriptor; it is the caller's to close.

        Raises:
            FrameError: none has come.
        """
        if not self._arrived:
            raise FrameError("a slot without its descriptor")
        return self._arrived.popleft()

    def close(self) -> None:
        while self._arrived:
            os.close(self._arrived.popleft())


@dataclass(eq=False)
class _Mapped:
    """A slot of another host. Each loan of it has a mapping to itself while it is read."""

    fd: int
    """Open as long as somebody knows this slot."""
    size: int
    idle: list[mmap.mmap] = field(default_factory=list[mmap.mmap])
    """Private ones."""
    idle_shared: list[mmap.mmap] = field(default_factory=list[mmap.mmap])

    def __post_init__(self) -> None:
        weakref.finalize(self, os.close, self.fd).atexit = False


class _Payload(NamedTuple):
    """What is being read here."""

    slot: _Mapped
    memory: mmap.mmap
    """The slot, mapped for this payload alone."""
    start: int
    """The mapping's address."""
    number: int
    token: int
    offset: int
    length: int
    given: bool


class Mappings:
    """What one other host has lent this one.

    Args:
        on_release: told the token and the length of a loan that nobody here refers to any more,
            from any thread, even in the middle of a garbage collection: it must not wait for
            anything.
    """

    def __init__(self, on_release: Callable[[int, int], None]) -> None:
        self._slots: dict[int, _Mapped] = {}
        self._on_release = on_release
        self._read: deque[_Payload] = deque()
        self._bytes = 0
        self._closed = False
        self._pagemap = Pagemap()
        self._lent: dict[int, _Payload] = {}
        """By its address."""

    def add(self, number: int, size: int, fd: int) -> None:
        """Know a slot by its descriptor, which is closed if it is refused.

        Raises:
            FrameError: it is no slot, of another size, or one too many.
        """
        try:
            if number in self._slots:
                raise FrameError(f"slot {number} for the second time")
            if len(self._slots) >= SLOT_LIMIT:
                raise FrameError(f"slot {number} is one of more than {SLOT_LIMIT}")
            try:
                sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
            except OSError:
                sealed = False
            if not sealed or size <= 0 or os.fstat(fd).st_size != size:
                raise FrameError(f"slot {number} is no sealed memory of {size} bytes")
        except FrameError:
            os.close(fd)
            raise
        self._slots[number] = _Mapped(fd, size)

    def view(
        self, number: int, token: int, offset: int, length: int, *, given: bool = False
    ) -> memoryview:
        """The bytes of a loan, which is released when nothing refers to them any more.

        Who writes to them writes to a copy, or if they are `given` to the slot.

        Raises:
            FrameError: no such slot, or bytes beyond its end.
        """
        slot = self._slots.get(number)
        if slot is None or length < 1 or offset + length > slot.size:
            raise FrameError(f"{length} bytes at {offset} of slot {number}, which has them not")
        idle = slot.idle_shared if given else slot.idle
        if not idle or len(self._read) > PUT_OFF:
            self.tidy()
        memory = idle.pop() if idle else self._map(slot, shared=given)
        lent = (ctypes.c_ubyte * length).from_buffer(memory, offset)
        address = ctypes.addressof(lent)
        payload = _Payload(slot, memory, address - offset, number, token, offset, length, given)
        self._lent[address] = payload
        when_garbage(lent, self._release, address, payload)
        return memoryview(lent).cast("B")

    def place(self, address: int) -> Place | None:
        """Where the payload that begins at that address lies in its host's slot."""
        payload = self._lent.get(address)
        return None if payload is None else Place(payload.slot, payload.slot.fd, payload.offset)

    def given(self, address: int, length: int) -> Return | None:
        """The payload that begins at that address, to be sent back, if all of it was given."""
        payload = self._lent.get(address)
        if payload is None or not payload.given or payload.length != length:
            return None
        return Return(payload.number, payload.token, payload.offset, length)

    def close(self) -> None:
        """Let go of all slots; payloads that are still referred to live on."""
        self._closed = True
        self._lent.clear()
        self._slots.clear()
        self._read.clear()
        self._pagemap.close()

    def _map(self, slot: _Mapped, *, shared: bool) -> mmap.mmap:
        if self._bytes + slot.size > BYTE_LIMIT:
            raise FrameError(f"more than {BYTE_LIMIT} bytes to map")
        try:
            # Of a shared mapping each page would have to be made writable by itself.
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE if shared else mmap.MAP_PRIVATE
            memory = mmap.mmap(slot.fd, slot.size, flags=flags)
        except OSError as error:
            raise FrameError(f"cannot map {slot.size} bytes: {error.strerror}") from error
        self._bytes += slot.size
        return memory

    def _release(self, address: int, payload: _Payload) -> None:
        self._lent.pop(address, None)
        if not self._closed:
            self._read.append(payload)
        self._on_release(payload.token, payload.length)

    def tidy(self) -> None:
        """Make the mappings of loans that were released ready for the next."""
        while self._read:
            payload = self._read.popleft()
            if self._closed:
                continue
            slot, memory = payload.slot, payload.memory
            if payload.given:
                slot.idle_shared.append(memory)
                continue
            try:
                if self._pagemap.has_private(payload.start, len(memory)):
                    memory.madvise(mmap.MADV_DONTNEED)
            except OSError:  # Locked pages cannot be cleaned: it is let go.
                self._bytes -= len(memory)
            else:
                slot.idle.append(memory)
