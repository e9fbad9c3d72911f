"""Outbox: frames on their way into a socket, as far as it has not taken them."""

import socket
import struct
from collections import deque
from collections.abc import Sequence
from itertools import islice

from .framing import Kind, header
from .slots import Slot

BUFFERS_PER_WRITE = 64
JOINED = 1 << 14
"""Bytes of a frame that cost less to copy than to be written piece by piece."""
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)
SLOT = struct.Struct("!IQ")
"""Content of a SLOT frame: its number and size."""


class Outbox:
    """A queue of bytes, with the descriptors that travel along.

    Args:
        host: this host, whom frames name as their source.
    """

    def __init__(self, host: int) -> None:
        self._host = host
        self.nbytes = 0
        self._views: deque[memoryview] = deque()
        self._handover: deque[tuple[memoryview, Slot]] = deque()
        """Slots whose descriptor goes with the first byte of that view."""

    def __bool__(self) -> bool:
        return bool(self._views)

    def append(self, kind: Kind, content: Sequence[bytes | memoryview] = ()) -> None:
        """Queue a frame; views are of bytes."""
        self._queue(self._pieces(kind, content))

    def send(self, sock: socket.socket, kind: Kind, content: Sequence[bytes | memoryview]) -> int:
        """Queue a frame, and give the socket what it takes now; how many bytes that were.

        Raises:
            OSError: as `write`.
        """
        pieces = self._pieces(kind, content)
        if self._views or len(pieces) > 1:
            self._queue(pieces)
            return self.write(sock)
        frame = memoryview(pieces[0])
        try:
            sent = sock.sendmsg([frame], (), _NO_SIGNAL)
        except BlockingIOError:
            sent = 0
        if sent < frame.nbytes:
            self._queue([frame[sent:]])
        return sent

    def append_slot(self, slot: Slot) -> None:
        """Queue a SLOT frame with the slot's descriptor."""
        first = len(self._views)
        self.append(Kind.SLOT, [SLOT.pack(slot.number, slot.size)])
        self._handover.append((self._views[first], slot))

    def write(self, sock: socket.socket) -> int:
        """Give the socket what it takes now; how many bytes that were.

        Raises:
            OSError: as `sendmsg`, `BlockingIOError` apart: the connection is broken.
        """
        total = 0
        # A write ends where the next descriptor begins; there are no more than these.
        for _ in range(1 + len(self._handover)):
            try:
                sent = self._write_once(sock)
            except BlockingIOError:
                break
            total += sent
            self.nbytes -= sent
            while sent > 0:
                if sent < self._views[0].nbytes:
                    self._views[0] = self._views[0][sent:]
                    break
                sent -= self._views.popleft().nbytes
            if not self._views:
                break
        return total

    def _pieces(
        self, kind: Kind, content: Sequence[bytes | memoryview]
    ) -> Sequence[bytes | memoryview]:
        """A frame, in one piece where that costs less than to write several."""
        length = sum(map(len, content))
        pieces = [header(kind, self._host, length), *content]
        return [b"".join(pieces)] if length <= JOINED else pieces

    def _queue(self, pieces: Sequence[bytes | memoryview]) -> None:
        for piece in pieces:
            if piece:
                self._views.append(memoryview(piece))
                self.nbytes += len(piece)

    def clear(self) -> None:
        """Drop everything."""
        self.nbytes = 0
        self._views.clear()
        self._handover.clear()

    def _write_once(self, sock: socket.socket) -> int:
        if not self._handover and len(self._views) == 1:
            return sock.sendmsg(self._views, (), _NO_SIGNAL)
        views: list[memoryview] = []
        ancillary: list[tuple[int, int, bytes]] = []
        first = self._handover[0][0] if self._handover else None
        for view in islice(self._views, BUFFERS_PER_WRITE):
            if view is first and not views:
                descriptor = struct.pack("@i", self._handover[0][1].fd)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)]
                first = self._handover[1][0] if len(self._handover) > 1 else None
            elif view is first:
                break
            views.append(view)
        sent = sock.sendmsg(views, ancillary, _NO_SIGNAL)
        if ancillary and sent:
            self._handover.popleft()
        return sent
