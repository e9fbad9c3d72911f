"""Slots: pooled shared memory in which hosts of one machine hand each other payloads.

A slot is an anonymous file in memory (memfd). Its owner writes it; a receiver on the same machine
is given the descriptor once, over their Unix connection, and maps it (`mappings.py`). From then on
a payload in that slot is sent as a few bytes that say where it lies, and is read in place. Nothing
has a name, so whatever happens to the processes, nothing is left behind.

A slot is free again when what lies in it here is garbage and every receiver has given its loan
back. What was lent to a host that is lost is not reused: it may live on, and read.

A payload may be given instead of lent: then its one receiver may write to it, and send it back.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
import weakref
from collections import deque
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .garbage import when_garbage

SHARED_FROM = 128 << 10
"""Tensors of fewer bytes go through the socket: a slot pays from about there on."""
SMALLEST = 128 << 10
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""One who reads beyond the end of a file that shrank is killed."""


class Slot:
    """A piece of shared memory.

    Raises:
        OSError: the system has no memory or no descriptor left.
    """

    def __init__(self, number: int, size: int, *, prefault: bool) -> None:
        self.number, self.size = number, size
        self.holders = 0
        """Tensors and buffers of this process that lie in it."""
        self.loans = 0
        self.given = False
        """Who receives what lies in it may write to that."""
        self.retired = False
        """Not to be reused."""
        try:
            self.fd = os.memfd_create("offbeat", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            self.close = weakref.finalize(self, os.close, self.fd)
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
            # The first touch of a new page costs several times a copy of it.
            populate = mmap.MAP_POPULATE if prefault else 0
            self.memory = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED | populate)
        except OSError as error:
            text = f"no shared memory of {size} bytes: {error.strerror}"
            raise OSError(error.errno, text) from error
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))


class Place(NamedTuple):
    """Where bytes lie in a slot, of this host or of another."""

    slot: object
    """The same for the same slot."""
    fd: int
    offset: int


class Loan(NamedTuple):
    """Bytes in a slot that a host has been sent and may still read."""

    token: int
    slot: Slot
    host: int
    offset: int
    length: int
    given: bool
    """It may write to them, and send them back."""


class Return(NamedTuple):
    """Bytes in another host's slot, which are sent back to that host."""

    slot: int
    """Its number there."""
    token: int
    offset: int
    length: int


class _Original(NamedTuple):
    """A tensor that was sent without a copy, so that writing to it would show."""

    tensor: weakref.ref[Tensor]
    version: int
    host: int


class Pool:
    """The slots of one host. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[Slot]] = {}
        self._by_address: dict[int, Slot] = {}
        self._loans: dict[int, Loan] = {}
        self._originals: dict[int, _Original] = {}
        self._returned: dict[int, Place] = {}
        """Of what has been sent back, by its address."""
        # Finalizers run anywhere, even in a thread that holds the lock: they only append here.
        self._dropped: deque[Slot] = deque()
        self._written: deque[int] = deque()
        self._slots = self._tokens = 0
        self._closed = False

    @property
    def total_bytes(self) -> int:
        """The memory that all slots take up, in use or free."""
        with self._lock:
            return sum(slot.size for slot in self._by_address.values())

    def tensor(self, count: int, dtype: torch.dtype, *, given: bool = False) -> Tensor:
        """A flat tensor `# (count,)` in a slot, its contents undefined; it is sent without a copy.

        Like a message it must not be written once it was sent, nor, if it is `given`, read: it is
        its one receiver's then. The slot is reused when the tensor and its views are garbage, here
        and with all who received them. If the system has no slot left to give, it is an ordinary
        tensor.
        """
        if count == 0:
            return torch.empty(0, dtype=dtype)
        try:
            memory, slot = self._take(count * dtype.itemsize)
        except OSError:
            return torch.empty(count, dtype=dtype)
        slot.given = given
        return torch.frombuffer(memory, dtype=dtype, count=count)

    def place(self, tensor: Tensor) -> Place | None:
        """Where a tensor lies, if in one of these slots."""
        slot = self._slot_of(tensor)
        if slot is None:
            return self._returned.get(tensor.data_ptr())
        return Place(slot, slot.fd, tensor.data_ptr() - slot.address)

    def buffer(self, size: int) -> memoryview:
        """Writable bytes, recycled when nothing refers to them any more.

        They are not touched beforehand: a size that a peer announces costs nothing until it sends.
        """
        try:
            memory, _ = self._take(size, prefault=False)
        except OSError:
            return memoryview(bytearray(size))
        return memoryview(memory).cast("B")

    def lend(self, tensor: Tensor, host: int) -> Loan:
        """Let a host read a contiguous tensor: in place if it lies in a slot, else a copy of it.

        Raises:
            OSError: the system has no memory or no descriptor left for a slot.
        """
        memory = None
        slot = self._slot_of(tensor)
        address = tensor.data_ptr()
        if slot is None:
            memory, slot = self._take(tensor.nbytes)
            address = slot.address
            torch.frombuffer(memory, dtype=tensor.dtype).copy_(tensor.detach().view(-1))
        with self._lock:
            self._tokens = token = self._tokens + 1
            offset = address - slot.address
            loan = Loan(token, slot, host, offset, tensor.nbytes, slot.given)
            self._loans[token] = loan
            slot.loans += 1
            if memory is None:
                self._remember(token, tensor, host)
        return loan

    def readable(self, tensor: Tensor, host: int) -> memoryview:
        """The bytes of a contiguous tensor for a socket: not copied if it lies in a slot."""
        if self._slot_of(tensor) is None:
            view = self.buffer(tensor.nbytes)
            torch.frombuffer(view, dtype=tensor.dtype).copy_(tensor.detach().view(-1))
            return view
        content = tensor.detach().view(-1).view(torch.uint8).numpy()
        with self._lock:
            self._tokens = token = self._tokens + 1
            self._remember(token, tensor, host)
        when_garbage(content, self._written.append, token)
        return content.data

    def give_back(self, token: int, host: int) -> bool:
        """That host reads the loan no more; False if it has no such loan."""
        with self._lock:
            loan = self._loans.get(token)
            if loan is None or loan.host != host:
                return False
            self._end(loan)
            return True

    def returned(self, token: int, host: int, offset: int, length: int) -> memoryview | None:
        """Bytes that this host has given that one, and that it has sent back.

        None if it has not been given them, or has them no more.
        """
        with self._lock:
            loan = self._loans.get(token)
            if loan is None or loan.host != host or not loan.given or length < 1:
                return None
            slot, end = loan.slot, loan.offset + loan.length
            if offset < loan.offset or offset + length > end:
                return None
            slot.given = False  # It is somebody's to keep now.
            memory = self._hold(slot, length, offset)
            address = slot.address + offset
            self._returned[address] = Place(slot, slot.fd, offset)
        when_garbage(memory, self._returned.pop, address, None)
        return memoryview(memory).cast("B")

    def forget(self, host: int) -> None:
        """That host is lost. It may live on and read: what it was lent is not reused."""
        with self._lock:
            for loan in [loan for loan in self._loans.values() if loan.host == host]:
                loan.slot.retired = True
                self._end(loan)

    def changed_after_send(self) -> str | None:
        """One line on a tensor that was written while its receiver may read it, else None.

        It looks at what was sent without a copy and is not released yet, no more.
        """
        with self._lock:
            while self._written:
                self._originals.pop(self._written.popleft(), None)
            for original in self._originals.values():
                tensor = original.tensor()
                if tensor is not None and tensor._version != original.version:
                    return (
                        f"a tensor of shape {tuple(tensor.shape)} was changed after it was sent to "
                        f"host {original.host}, which may still read it: send a clone of it"
                    )
        return None

    def close(self) -> None:
        """Let go of all slots; tensors in them live on until they are garbage."""
        with self._lock:
            self._closed = True
            for slot in self._by_address.values():
                slot.close()
            for kept in (self._by_address, self._free, self._loans, self._originals):
                kept.clear()
            self._returned.clear()
            self._dropped.clear()

    def _take(self, size: int, *, prefault: bool = True) -> tuple[Any, Slot]:
        """A ctypes array of that many bytes, and the slot that it keeps in use while it lives."""
        rounded = slot_size(size)
        with self._lock:
            while self._dropped:
                dropped = self._dropped.popleft()
                dropped.holders -= 1
                self._recycle(dropped)
            free = self._free.get(rounded)
            slot = free.pop() if free else None
            self._slots += slot is None
            number = self._slots
        if slot is None:
            slot = Slot(number, rounded, prefault=prefault)
            with self._lock:
                if not self._closed:
                    self._by_address[slot.address] = slot
        slot.given = False
        return self._hold(slot, size), slot

    def _hold(self, slot: Slot, size: int, offset: int = 0) -> Any:
        """A ctypes array of bytes in a slot, which it keeps in use while it lives."""
        slot.holders += 1
        memory = (ctypes.c_ubyte * size).from_buffer(slot.memory, offset)
        when_garbage(memory, self._drop, slot)
        return memory

    def _drop(self, slot: Slot) -> None:
        if not self._closed:
            self._dropped.append(slot)

    def _slot_of(self, tensor: Tensor) -> Slot | None:
        # Most begin where their slot does, and to ask for the storage takes longer.
        found = self._by_address.get(tensor.data_ptr())
        return found or self._by_address.get(tensor.untyped_storage().data_ptr())

    def _remember(self, token: int, tensor: Tensor, host: int) -> None:
        if tensor.is_inference():  # It has no version.
            return
        # A view shares its base's version, and is often gone before the base is written.
        base = tensor if tensor._base is None else tensor._base
        self._originals[token] = _Original(weakref.ref(base), tensor._version, host)

    def _end(self, loan: Loan) -> None:
        del self._loans[loan.token]
        self._originals.pop(loan.token, None)
        loan.slot.loans -= 1
        self._recycle(loan.slot)

    def _recycle(self, slot: Slot) -> None:
        if slot.holders or slot.loans:
            return
        if slot.retired:
            self._by_address.pop(slot.address, None)
        else:
            self._free.setdefault(slot.size, []).append(slot)


@lru_cache(maxsize=256)
def slot_size(size: int) -> int:
    """`size` rounded up to a quarter of a power of two: little is wasted, and slots are reused."""
    if size <= SMALLEST:
        return SMALLEST
    quarter = 1 << ((size - 1).bit_length() - 3)
    return -(-size // quarter) * quarter
