"""Frames: what travels on a connection.

A frame is a header (magic, version, kind, source host, payload length) and an opaque payload.
"""

import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

MAGIC = b"OFBT"
VERSION = 1
HEADER = struct.Struct("!4sBBxxIQ")


class Kind(IntEnum):
    """What a frame is for."""

    CHALLENGE = 1
    ANSWER = 2
    WELCOME = 3
    DATA = 4
    GOODBYE = 5
    SLOT = 6
    """A slot's number and size; its descriptor comes along."""
    RELEASE = 7
    """Tokens of loans that are read no more."""
    TAKEN = 8
    """A host of that number is connected already."""
    BEAT = 9
    """Nothing, but a sign of life."""


_KINDS = {kind.value: kind for kind in Kind}


class FrameError(ConnectionError):
    """The bytes received are not a frame that may come here."""


class Frame(NamedTuple):
    """A received frame; the payload is the receiver's own, writable memory."""

    kind: Kind
    source: int
    payload: memoryview


def header(kind: Kind, source: int, length: int) -> bytes:
    """The header of a frame with a payload of `length` bytes."""
    return HEADER.pack(MAGIC, VERSION, kind, source, length)


def receive_into(sock: socket.socket, buffer: memoryview) -> int:
    """Receive once into the buffer; the number of bytes."""
    return sock.recv_into(buffer)


class FrameReader:
    """Assembles frames from a stream socket, one `recv` at a time.

    Args:
        limit: longest payload accepted, in bytes.
        allocate: gives memory for a payload of so many bytes.
        receive: as `socket.recv_into`.
        ahead: bytes that may be received at once while a header is awaited, so that a small frame
            costs one `recv`. At 0 it never reads beyond the frame that it assembles.
    """

    def __init__(
        self,
        limit: int,
        *,
        allocate: Callable[[int], bytearray | memoryview] = bytearray,
        receive: Callable[[socket.socket, memoryview], int] = receive_into,
        ahead: int = 0,
    ) -> None:
        self.limit = limit
        self._allocate, self._receive = allocate, receive
        self._staged = memoryview(bytearray(max(ahead, HEADER.size)))
        self._first = self._last = 0
        """Where in `_staged` lie the bytes that no frame has taken yet."""
        self._header: tuple[Kind, int] | None = None
        self._payload = memoryview(b"")
        self._filled = 0
        self.drained = False
        """The last `recv` gave less than there was room for: there was no more."""

    @property
    def has_staged(self) -> bool:
        """Whether the next step needs no `recv`."""
        return self._header is None and self._last - self._first >= HEADER.size

    def step(self, sock: socket.socket) -> Frame | None:
        """Receive once, unless a header is here; the frame if that completed one.

        Raises:
            EOFError: the other end sends no more.
            FrameError: the header is none, or announces more than `limit` bytes.
            OSError: as `recv`; `BlockingIOError` where nothing has arrived.
        """
        if self._header is None:
            if self._last - self._first < HEADER.size:
                if self._first:
                    self._make_room()
                self._last += self._receive_into(sock, self._staged[self._last :])
                if self._last - self._first < HEADER.size:
                    return None
            return self._begin()
        self._filled += self._receive_into(sock, self._payload[self._filled :])
        if self._filled < self._payload.nbytes:
            return None
        frame = Frame(*self._header, self._payload)
        self.close()
        return frame

    def _make_room(self) -> None:
        """Less than a header is staged; it comes first."""
        if self._first < self._last:
            left = bytes(self._staged[self._first : self._last])
            self._staged[: len(left)] = left
        self._first, self._last = 0, self._last - self._first

    def _begin(self) -> Frame | None:
        """Begin a frame, with what has been received of its payload; the frame if that is all."""
        magic, version, kind, source, length = HEADER.unpack_from(self._staged, self._first)
        known = _KINDS.get(kind)
        if magic != MAGIC or version != VERSION or known is None or length > self.limit:
            raise self._refusal(magic, version, kind, length)
        start = self._first + HEADER.size
        end = start + length
        if end <= self._last:
            self._first, self._last = (0, 0) if end == self._last else (end, self._last)
            return Frame(known, source, memoryview(bytearray(self._staged[start:end])))
        self._payload = memoryview(self._allocate(length))
        self._filled = self._last - start
        self._first = self._last
        self._payload[: self._filled] = self._staged[start : self._last]
        self._header = known, source
        return None

    def _receive_into(self, sock: socket.socket, buffer: memoryview) -> int:
        count = self._receive(sock, buffer)
        if count == 0:
            raise EOFError
        self.drained = count < buffer.nbytes
        return count

    def close(self) -> None:
        """Let go of a payload, which may have arrived in part."""
        self._header = None
        self._payload = memoryview(b"")
        self._filled = 0

    def _refusal(self, magic: bytes, version: int, kind: int, length: int) -> FrameError:
        if magic != MAGIC:
            got = bytes(self._staged[self._first : self._first + HEADER.size])
            return FrameError(f"expected a frame, got the bytes {got!r}")
        if version != VERSION:
            return FrameError(f"frame of version {version}, but this is version {VERSION}")
        if kind not in _KINDS:
            return FrameError(f"frame of unknown kind {kind}")
        return FrameError(f"frame of {length} bytes, the limit is {self.limit}")
