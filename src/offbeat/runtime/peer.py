"""Peer: the connection to another host, and all that is said on it after the handshake."""

import contextlib
import ctypes
import functools
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from .framing import FrameError, FrameReader, Kind, receive_into
from .liveness import BEAT_SECONDS, Pulse
from .mappings import SLOT_LIMIT, DescriptorReceiver, Mappings
from .outbox import SLOT, Outbox
from .payload import Where, compose, split
from .reactor import Reactor
from .slots import SHARED_FROM, Loan, Place, Pool, Return
from .tls import has_pending

Part: TypeAlias = "bytes | bytearray | memoryview | Tensor"
AHEAD = 1 << 14
"""Bytes that are received at once, before it is known what they are."""
PAYLOAD_OVERHEAD = 1 << 20
"""What a frame may have in tables and padding."""
RELEASES_PER_FRAME = 1000
SMALL = 1 << 20
"""Bytes of a loan whose end may wait to be told by the next frame, or tick."""
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_DATA = Kind.DATA  # An enumeration's own member takes as long as a call.
_TOKEN = struct.Struct("!Q")


class Peer:
    """One connection. The lock guards what is written; the reactor's thread reads.

    Args:
        host: the host at the other end.
        own: this host.
        sock: after the handshake.
        reactor: whose thread reads.
        on_ready: called there when there is something to read or room to write.
        pool: slots that are lent; large payloads from the socket land there too.
        limit: longest frame accepted, in bytes.
        patience: seconds of silence borne from another machine.
        on_queued: told by how many bytes what waits in the outbox grew or shrank, under the lock.
        on_release: told of this when there is something to `tidy`, and whether `released` loans
            should not wait for the next frame; from any thread, even in the middle of a garbage
            collection: it must not wait for anything.
    """

    def __init__(
        self,
        host: int,
        sock: socket.socket,
        *,
        own: int,
        reactor: Reactor,
        on_ready: Callable[["Peer"], None],
        pool: Pool,
        limit: int,
        patience: float,
        on_queued: Callable[[int], None],
        on_release: Callable[["Peer", bool], None],
    ) -> None:
        sock.setblocking(False)
        self.host, self.sock, self._pool = host, sock, pool
        self.lock = threading.Lock()
        self.sendable = self.reading = True
        self.leaving = False
        """We have said goodbye."""
        self.has_left = False
        """It has said goodbye."""
        self.outbox = Outbox(own)
        self._on_queued = on_queued
        self._queued = 0
        """Bytes of the outbox that `on_queued` knows of."""
        self._shares = sock.family == socket.AF_UNIX
        """Payloads may be lent in slots: it is on this machine."""
        self.pulse = None if self._shares else Pulse(sock, time.monotonic(), patience)
        self._known: set[int] = set()
        """Slots of ours that it has been handed."""
        self.released: deque[int] = deque()
        """Tokens of loans from there that nobody here reads any more, until it is told."""
        self._on_release = on_release
        self._mappings = Mappings(self._release)
        self._descriptors = DescriptorReceiver()
        self._reader = FrameReader(
            limit + PAYLOAD_OVERHEAD,
            allocate=lambda size: pool.buffer(size) if size >= SHARED_FROM else bytearray(size),
            receive=self._descriptors if self._shares else receive_into,
            ahead=AHEAD,
        )
        self._reactor = reactor
        self._interest = _IN
        reactor.watch(sock, functools.partial(on_ready, self))

    # Receiving

    def receive(self) -> list[memoryview] | None:
        """Receive once; the parts of a DATA frame if that completed one.

        Raises:
            EOFError: the other end sends no more.
            FrameError: a frame that may not come, or that does not hold what it says.
            OSError: as `recv`; `BlockingIOError` where nothing has arrived.
        """
        frame = self._reader.step(self.sock)
        if self.pulse is not None:
            self.pulse.heard = time.monotonic()
        if frame is None:
            return None
        kind, source, payload = frame
        if source != self.host:
            raise FrameError(f"frame {kind.name} in the name of host {source}")
        if kind is _DATA:
            return split(payload, self._borrow, self._take_back)
        if kind is Kind.SLOT:
            self._add_slot(payload)
        elif kind is Kind.RELEASE:
            self._take_back_all(payload)
        elif kind is Kind.GOODBYE:
            self.has_left = True
        elif kind is not Kind.BEAT:
            raise FrameError(f"frame {kind.name} after the handshake")
        return None

    def place(self, payload: Tensor) -> Place | None:
        """Where a payload that it has sent lies in a slot of its own, while it is referred to."""
        return self._mappings.place(payload.data_ptr())

    def given(self, payload: Tensor) -> Return | None:
        """A payload that it has given this host, to be sent back to it; None if it is none."""
        return self._mappings.given(payload.data_ptr(), payload.nbytes)

    def _borrow(self, where: Where, slot: int, token: int, offset: int, length: int) -> memoryview:
        if where is not Where.RETURNED:
            return self._mappings.view(slot, token, offset, length, given=where is Where.GIVEN)
        found = self._pool.returned(token, self.host, offset, length)
        if found is None:
            raise FrameError(f"{length} bytes at {offset} of loan {token}, which it was not given")
        return found

    @property
    def has_more(self) -> bool:
        """Whether there is a frame that needs no event to be read."""
        return self._reader.has_staged or has_pending(self.sock)

    @property
    def is_drained(self) -> bool:
        """Whether, as far as the last `receive` could tell, nothing more is here."""
        reader = self._reader
        return reader.drained and not (reader.has_staged or has_pending(self.sock))

    def _add_slot(self, payload: memoryview) -> None:
        fd = self._descriptors.take()
        if payload.nbytes != SLOT.size:
            os.close(fd)
            raise FrameError(f"SLOT of {payload.nbytes} bytes")
        number, size = SLOT.unpack(payload)
        self._mappings.add(number, size, fd)

    def _take_back_all(self, payload: memoryview) -> None:
        if payload.nbytes % _TOKEN.size:
            raise FrameError(f"RELEASE of {payload.nbytes} bytes")
        for (token,) in _TOKEN.iter_unpack(payload):
            self._take_back(token)

    def _take_back(self, token: int) -> None:
        if not self._pool.give_back(token, self.host):
            raise FrameError(f"release of loan {token}, which it has not")

    # Sending

    def send(self, parts: Sequence[Part]) -> bool:
        """Queue a DATA frame, and write what can be written; False if nothing more can be sent."""
        if not self.sendable:
            return False
        ready = [part if isinstance(part, bytes) else self._ready(part) for part in parts]
        with self.lock:
            if self.sendable:
                idle = not self.outbox.nbytes
                for part in ready:
                    if isinstance(part, Loan) and part.slot.number not in self._known:
                        self._known.add(part.slot.number)
                        self.outbox.append_slot(part.slot)
                return self._queue(_DATA, compose(ready, self._to_release()), idle=idle)
        for part in ready:
            if isinstance(part, Loan):
                self._pool.give_back(part.token, self.host)
        return False

    def release(self) -> None:
        """Tell it what is read no more, if no frame has done so."""
        with self.lock:
            while tokens := self._to_release():
                if self.sendable:
                    self.push(Kind.RELEASE, [b"".join(map(_TOKEN.pack, tokens))])

    def tidy(self) -> None:
        """Make what was read ready for the next loans, which would do it themselves."""
        self._mappings.tidy()

    def _release(self, token: int, length: int) -> None:
        self.released.append(token)
        # A frame of its own, for one that the next frame is likely to tell, would cost as much.
        self._on_release(self, length > SMALL or len(self.released) > 1 or not self.reading)

    def _to_release(self) -> Sequence[int]:
        if not self.released:
            return ()
        count = min(len(self.released), RELEASES_PER_FRAME)
        if count == 1:  # As nearly always.
            return (self.released.popleft(),)
        return [self.released.popleft() for _ in range(count)]

    def beat(self, now: float) -> None:
        """Give a sign of life, unless something was written lately."""
        with self.lock:
            silent = self.pulse is not None and now - self.pulse.spoke >= BEAT_SECONDS
            if silent and self.sendable and not self.outbox:
                self.push(Kind.BEAT)

    def _ready(self, part: bytearray | memoryview | Tensor) -> bytes | memoryview | Loan | Return:
        """A part as it is written: bytes that nobody changes, or where in a slot it lies."""
        if not isinstance(part, Tensor):
            view = memoryview(part)
            # Bytes: a view of floats would be sliced by items. Empty ones cannot always be cast.
            return view.cast("B") if view.nbytes > 0 else memoryview(b"")
        if part.nbytes < SHARED_FROM:
            return ctypes.string_at(part.data_ptr(), part.nbytes)
        if (back := self._mappings.given(part.data_ptr(), part.nbytes)) is not None:
            return back
        return self._lent(part) or self._pool.readable(part, self.host)

    def _lent(self, part: Tensor) -> Loan | None:
        if not self._shares:
            return None
        try:
            loan = self._pool.lend(part, self.host)
        except OSError:
            return None
        if loan.slot.number not in self._known and len(self._known) >= SLOT_LIMIT:
            self._pool.give_back(loan.token, self.host)
            return None
        return loan

    # With the lock held

    def push(self, kind: Kind, content: Sequence[bytes | memoryview] = ()) -> bool:
        """Queue a frame, and write what can be written; False if the connection is broken."""
        return self._queue(kind, content, idle=not self.outbox)

    def _queue(self, kind: Kind, content: Sequence[bytes | memoryview], *, idle: bool) -> bool:
        if not idle:
            self.outbox.append(kind, content)
            self._tell()
            return True
        try:
            sent = self.outbox.send(self.sock, kind, content)
        except OSError:
            return self._break()
        return self._wrote(sent)

    def flush(self) -> bool:
        """Write what the socket takes now; False if the connection is broken."""
        try:
            sent = self.outbox.write(self.sock)
        except OSError:
            return self._break()
        return self._wrote(sent)

    def _break(self) -> bool:
        # What the peer sent before is still to be read, up to the end that this makes.
        self.sendable = False
        self.drop()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.watch()
        return False

    def _wrote(self, sent: int) -> bool:
        if self.pulse is not None:
            self.pulse.wrote(sent, time.monotonic())
        if not (self.outbox.nbytes or self._queued or self.leaving):
            return True  # As nearly always: nothing waited, and nothing waits.
        self._tell()
        if self.leaving and not self.outbox:
            # The peer may still be sending: closing now would reset the connection and lose
            # what is under way to it. It answers the goodbye by closing its end.
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
        self.watch()
        return True

    def drop(self) -> None:
        """Give up what waits to be written."""
        self.outbox.clear()
        self._tell()

    def _tell(self) -> None:
        if change := self.outbox.nbytes - self._queued:
            self._queued += change
            self._on_queued(change)

    def watch(self) -> None:
        """Wait for what the connection is to do next."""
        interest = _IN if self.reading else 0
        if self.outbox.nbytes:
            interest |= _OUT
        if interest != self._interest:
            self._interest = interest
            self._reactor.expect(self.sock, interest)

    def close(self) -> None:
        """Close the connection; payloads received live on."""
        self._reactor.unwatch(self.sock)
        self.forget()

    def forget(self) -> None:
        """Close the descriptors only: in a forked child the connection is not ours to end."""
        self.sock.close()
        self._reader.close()
        self._descriptors.close()
        self._mappings.close()
