"""Point-to-point transport: whole frames between hosts, over a full mesh of stream sockets."""

import contextlib
import functools
import os
import select
import socket
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Self

from offbeat.runtime.handshake import HEADER, Acceptor, FrameError, FrameReader, Kind, dial, header

STEPS_PER_EVENT = 32
"""Receives from one peer before the others have their turn."""
BUFFERS_PER_WRITE = 64


@dataclass(kw_only=True, eq=False)
class _Peer:
    """A connection to another host. The lock guards everything but the reader."""

    host: int
    sock: socket.socket
    reader: FrameReader
    lock: threading.Lock = field(default_factory=threading.Lock)
    outbox: deque[memoryview] = field(default_factory=deque[memoryview])
    interest: int = select.EPOLLIN
    sendable: bool = True
    reading: bool = True
    left: bool = False
    """We said goodbye."""


class Transport:
    """One host's connections to all others, and the thread that serves them.

    All callbacks run in that thread, one at a time and with no lock held; while one runs, nothing
    is received, and until it returns `close` and `abort` wait. They may come before `connect`
    returns (a peer can be faster) and until `close` returns. The thread is no daemon: a program
    ends only after `close` or `abort`, which leaving a `with` block calls.

    A host number is used once: a host that was lost cannot come back under the same number.

    Args:
        host: number of this host.
        listen: "unix:/path" (a new file), or "tcp:ip:port" where port 0 lets the system choose.
        secret: what all hosts of the run know and nobody else does.
        on_frame: called with source host and payload, per source in the order sent. The payload
            is the callee's own, writable memory.
        on_lost: called with a host and whether it closed gracefully, once, after its last frame.
            Not called for hosts that this one leaves by `close` or `abort`.
        on_error: called with what a callback raised, or a `ConnectionError` for what a peer sent
            and a host may not send; default: print it. Strangers refused are only logged.
        on_tick: called every `tick` seconds.
        tick: seconds; also how often overdue handshakes are ended.
        max_frame_bytes: longest payload sent or accepted.
        socket_buffer_bytes: size of the sockets' buffers, the system's default if None.

    Raises:
        ValueError: no usable address, or an empty secret.
        OSError: the address is taken, or not of this machine.
    """

    def __init__(
        self,
        host: int,
        listen: str,
        secret: bytes,
        on_frame: Callable[[int, memoryview], None],
        on_lost: Callable[[int, bool], None],
        *,
        on_error: Callable[[BaseException], None] = traceback.print_exception,
        on_tick: Callable[[], None] | None = None,
        tick: float = 0.1,
        max_frame_bytes: int = 1 << 32,
        socket_buffer_bytes: int | None = None,
    ) -> None:
        if not secret:
            raise ValueError(f"host {host}: the secret is empty")
        self.host = host
        self._secret = secret
        self._on_frame, self._on_lost, self._on_error = on_frame, on_lost, on_error
        self._on_tick, self._tick = on_tick, tick
        self._max_frame_bytes = max_frame_bytes
        self._buffer_bytes = socket_buffer_bytes

        self._peers: dict[int, _Peer] = {}
        self._open: dict[int, _Peer] = {}
        self._soon: deque[Callable[[], None]] = deque()
        self._outbox_bytes = 0
        self._leaving = self._stopping = self._stopped = False
        # Taken after a peer's lock, never before it.
        self._changed = threading.Condition()

        self._epoll = select.epoll()
        try:
            self._acceptor = Acceptor(
                listen,
                host=host,
                secret=secret,
                epoll=self._epoll,
                may_join=lambda host: host not in self._peers,
                on_host=self._adopt,
                on_error=self._report,
                buffer_bytes=socket_buffer_bytes,
            )
        except BaseException:
            self._epoll.close()
            raise
        self.address = self._acceptor.address
        """Where other hosts reach this one."""
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        os.register_at_fork(
            after_in_child=functools.partial(_forget_in_child, weakref.ref(self)),
        )
        self._thread = threading.Thread(target=self._run, name=f"transport of host {host}")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def connect(self, addresses: Mapping[int, str], timeout: float) -> None:
        """Connect to all hosts of `addresses`, within `timeout` seconds.

        Of two hosts the one with the lower number dials, so both must call this. Hosts already
        known, and this one, are skipped; calling again adds hosts.

        Raises:
            ConnectionError: naming host and address, if one refuses or does not come in time.
        """
        self._forbid_in_thread("connect")
        deadline = time.monotonic() + timeout
        for host in sorted(addresses):
            if host <= self.host or host in self._peers:
                continue
            sock = dial(
                addresses[host],
                host=self.host,
                to=host,
                secret=self._secret,
                timeout=max(0.0, deadline - time.monotonic()),
                buffer_bytes=self._buffer_bytes,
            )
            if not self.call_soon(functools.partial(self._adopt, host, sock)):
                sock.close()

        def missing() -> list[int]:
            return [h for h in sorted(addresses) if h != self.host and h not in self._peers]

        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or self._leaving or not missing(),
                deadline - time.monotonic(),
            )
            if absent := missing():
                why = "this host closed" if self._leaving or self._stopped else "did not connect"
                names = ", ".join(f"host {h} at {addresses[h]}" for h in absent)
                raise ConnectionError(f"host {self.host}, within {timeout} s: {names}: {why}")

    def send(self, to: int, *parts: bytes | bytearray | memoryview) -> bool:
        """Send the parts as one frame; never blocks, from any thread.

        The parts belong to the transport afterwards: do not write to them.

        Returns:
            False if the frame was dropped because that host is lost or this one is closing. True
            says that it was written or queued, not that it arrived.

        Raises:
            ValueError: no such host was ever connected, or the frame is too long.
        """
        peer = self._peers.get(to)
        if peer is None:
            raise ValueError(f"host {self.host} is not connected to host {to}: connect() first")
        # Bytes: a view of floats would be sliced by items. Empty ones cannot always be cast.
        views = [v.cast("B") for part in parts if (v := memoryview(part)).nbytes > 0]
        length = sum(view.nbytes for view in views)
        if length > self._max_frame_bytes:
            raise ValueError(
                f"host {self.host}: a frame of {length} bytes for host {to}, "
                f"the limit is {self._max_frame_bytes}"
            )
        with peer.lock:
            return peer.sendable and self._push(peer, Kind.DATA, views, length)

    @property
    def outbox_bytes(self) -> int:
        """Bytes queued for all peers together: sent by the caller, not yet taken by the system."""
        return self._outbox_bytes

    def wait_outbox(self, below: int, timeout: float) -> bool:
        """Wait until fewer than `below` bytes are queued; False if `timeout` seconds passed."""
        self._forbid_in_thread("wait_outbox")
        if below < 1:
            raise ValueError(f"below = {below}: the outbox never holds less than 0 bytes")
        with self._changed:
            return self._changed.wait_for(lambda: self._outbox_bytes < below, timeout)

    def call_soon(self, fn: Callable[[], None]) -> bool:
        """Run `fn` in the transport's thread, in order of the calls; False if it has ended.

        `close` first runs what was called before it, `abort` does not.
        """
        with self._changed:
            if self._stopped:
                return False
            self._soon.append(fn)
            os.eventfd_write(self._wakeup, 1)
            return True

    def close(self, timeout: float = 5.0) -> bool:
        """Leave gracefully: send what is queued and a goodbye, then wait for the peers' ends.

        Frames that peers had queued for this host are still delivered, so if all close at once,
        nothing is lost.

        Returns:
            Whether all that was done within `timeout` seconds; if not, it ends as by `abort`.
        """
        self._forbid_in_thread("close")
        self.call_soon(self._say_goodbye)
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or (self._leaving and not self._open), timeout
            )
            done = self._leaving and not self._open
        self.abort()
        return done

    def abort(self) -> None:
        """Close at once; what is queued is dropped and to the peers this host is lost."""
        with self._changed:
            self._stopping = True
            if not self._stopped:
                os.eventfd_write(self._wakeup, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _forbid_in_thread(self, name: str) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(f"{name}() in a callback would wait for its own thread")

    # The rest runs in the transport's thread, except _push and _flush: they run in any.

    def _run(self) -> None:
        next_tick = time.monotonic() + self._tick
        try:
            while not self._stopping:
                for fd, _ in self._epoll.poll(max(0.0, next_tick - time.monotonic())):
                    self._serve(fd)
                    if self._stopping:
                        return
                for _ in range(len(self._soon)):
                    self._call(self._soon.popleft())
                now = time.monotonic()
                if now >= next_tick:
                    # Ticks missed during a long callback are not made up for.
                    next_tick = now + self._tick
                    self._housekeep(now)
        except Exception as error:
            self._report(error)
        finally:
            self._release()

    def _serve(self, fd: int) -> None:
        if (peer := self._open.get(fd)) is not None:
            with peer.lock:
                if peer.outbox:
                    self._flush(peer)
            if peer.reading:
                self._receive(peer)
            else:
                # Its goodbye was read: it is only being flushed.
                self._end_if_done(peer)
        elif fd == self._wakeup:
            os.eventfd_read(fd)
        else:
            self._acceptor.serve(fd)

    def _housekeep(self, now: float) -> None:
        self._acceptor.tick(now)
        if self._on_tick is not None:
            self._call(self._on_tick)

    def _adopt(self, host: int, sock: socket.socket) -> None:
        if self._leaving or host in self._peers:
            sock.close()
            return
        sock.setblocking(False)
        peer = _Peer(host=host, sock=sock, reader=FrameReader(self._max_frame_bytes))
        self._epoll.register(sock, peer.interest)
        with self._changed:
            self._peers[host] = self._open[sock.fileno()] = peer
            self._changed.notify_all()

    def _receive(self, peer: _Peer) -> None:
        try:
            for _ in range(STEPS_PER_EVENT):
                frame = peer.reader.step(peer.sock)
                if frame is None:
                    continue
                if frame.source != peer.host or frame.kind not in (Kind.DATA, Kind.GOODBYE):
                    raise FrameError(f"frame {frame.kind.name} in the name of host {frame.source}")
                if frame.kind is Kind.GOODBYE:
                    self._lose(peer, graceful=True)
                    return
                self._call(self._on_frame, frame.source, frame.payload)
                if self._stopping:
                    return
        except BlockingIOError:
            return
        except (FrameError, MemoryError) as error:
            text = f"host {self.host} drops the connection to host {peer.host}: {error}"
            self._report(ConnectionError(text))
            self._lose(peer, graceful=False)
        except (OSError, EOFError):
            self._lose(peer, graceful=False)

    def _lose(self, peer: _Peer, *, graceful: bool) -> None:
        with peer.lock:
            peer.sendable = peer.reading = False
            if not graceful:
                self._discard(peer)
            self._watch(peer)
        # One that said goodbye still reads what was queued for it before that.
        self._end_if_done(peer)
        if graceful or not peer.left:
            self._call(self._on_lost, peer.host, graceful)

    def _end_if_done(self, peer: _Peer) -> None:
        with peer.lock:
            if peer.outbox:
                return
            fd = peer.sock.fileno()
            self._epoll.unregister(fd)
            peer.sock.close()
        with self._changed:
            del self._open[fd]
            self._changed.notify_all()

    def _say_goodbye(self) -> None:
        self._acceptor.close()
        for peer in self._open.values():
            with peer.lock:
                if peer.sendable:
                    peer.sendable, peer.left = False, True
                    self._push(peer, Kind.GOODBYE, [], 0)
        with self._changed:
            self._leaving = True
            self._changed.notify_all()

    def _push(self, peer: _Peer, kind: Kind, views: list[memoryview], length: int) -> bool:
        """Append a frame to the outbox; the peer's lock is held. False if it cannot be sent."""
        idle = not peer.outbox
        peer.outbox.append(memoryview(header(kind, self.host, length)))
        peer.outbox.extend(views)
        self._count(HEADER.size + length)
        return self._flush(peer) if idle else True

    def _flush(self, peer: _Peer) -> bool:
        """Write what the socket takes now; the peer's lock is held. False if it is broken."""
        try:
            sent = peer.sock.sendmsg(
                islice(peer.outbox, BUFFERS_PER_WRITE), (), socket.MSG_NOSIGNAL
            )
        except BlockingIOError:
            sent = 0
        except OSError:
            # What the peer sent before is still to be read, up to the end that this makes.
            peer.sendable = False
            self._discard(peer)
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
            self._watch(peer)
            return False
        self._count(-sent)
        while sent > 0:
            if sent < peer.outbox[0].nbytes:
                peer.outbox[0] = peer.outbox[0][sent:]
                break
            sent -= peer.outbox.popleft().nbytes
        if peer.left and not peer.outbox:
            # The peer may still be sending: closing now would reset the connection and lose
            # what is under way to it. It answers the goodbye by closing its end.
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_WR)
        self._watch(peer)
        return True

    def _watch(self, peer: _Peer) -> None:
        interest = select.EPOLLIN if peer.reading else 0
        if peer.outbox:
            interest |= select.EPOLLOUT
        if interest != peer.interest:
            peer.interest = interest
            self._epoll.modify(peer.sock, interest)

    def _discard(self, peer: _Peer) -> None:
        self._count(-sum(view.nbytes for view in peer.outbox))
        peer.outbox.clear()

    def _count(self, change: int) -> None:
        with self._changed:
            self._outbox_bytes += change
            if change < 0:
                self._changed.notify_all()

    def _call(self, fn: Callable[..., None], *args: object) -> None:
        try:
            fn(*args)
        except BaseException as error:
            self._report(error)

    def _report(self, error: BaseException) -> None:
        try:
            self._on_error(error)
        except BaseException as second:
            traceback.print_exception(second, file=sys.stderr)

    def _release(self) -> None:
        self._acceptor.close()
        for peer in self._open.values():
            with peer.lock:
                peer.sendable = False
                self._discard(peer)
                peer.sock.close()
        with self._changed:
            self._stopped = True
            self._soon.clear()
            self._epoll.close()
            os.close(self._wakeup)
            self._changed.notify_all()

    def _forget(self) -> None:
        """In a forked child, which has the descriptors but not the thread, let go of them.

        Otherwise a data loader's worker would keep the connections of its killed parent open, and
        nobody would see their end.
        """
        self._stopping = self._stopped = True
        # The old locks may be held, for ever, by threads that are not here.
        self._changed = threading.Condition()
        self._acceptor.forget()
        for peer in self._open.values():
            peer.lock = threading.Lock()
            peer.sendable = False
            peer.sock.close()
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._wakeup)


def _forget_in_child(transport: "weakref.ref[Transport]") -> None:
    if (alive := transport()) is not None:
        alive._forget()
