"""The wire: addresses, frames, and the handshake that opens a connection.

A frame is a header (magic, version, kind, source host, payload length) and an opaque payload.
The first three frames of a connection prove to both ends that the other knows the run's secret:

    acceptor -> dialer    CHALLENGE  nonce_a
    dialer   -> acceptor  ANSWER     nonce_d, HMAC-SHA256(secret, "dial", hosts, nonces)
    acceptor -> dialer    WELCOME    HMAC-SHA256(secret, "accept", hosts, nonces)

Neither proof can be replayed (nonces) nor reflected (roles and host numbers), and nobody without
the secret is shown one by an acceptor. What follows is neither encrypted nor signed.
"""

import contextlib
import functools
import hmac
import ipaddress
import logging
import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

MAGIC = b"OFBT"
VERSION = 1
HEADER = struct.Struct("!4sBBxxIQ")
NONCE_BYTES = 32
PROOF_BYTES = 32
HANDSHAKE_FRAME_BYTES = 128
"""Limit on a payload before its sender is trusted: a stranger cannot make us allocate."""
HANDSHAKE_SECONDS = 10.0
"""How long one who connects may take to prove that it knows the secret."""
UNIX_PATH_BYTES = 107

_log = logging.getLogger(__name__)


class Kind(IntEnum):
    """What a frame is for."""

    CHALLENGE = 1
    ANSWER = 2
    WELCOME = 3
    DATA = 4
    GOODBYE = 5


class FrameError(ConnectionError):
    """The bytes received are not a frame that may come here."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A received frame; the payload is the receiver's own, writable memory."""

    kind: Kind
    source: int
    payload: memoryview


def header(kind: Kind, source: int, length: int) -> bytes:
    """The header of a frame with a payload of `length` bytes."""
    return HEADER.pack(MAGIC, VERSION, kind, source, length)


class FrameReader:
    """Assembles frames from a stream socket, one `recv` at a time.

    It never reads beyond the frame it assembles, so payloads land in place.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Longest payload accepted, in bytes."""
        self._start()

    def _start(self) -> None:
        self._header: tuple[Kind, int] | None = None
        self._buffer = memoryview(bytearray(HEADER.size))
        self._filled = 0

    def step(self, sock: socket.socket) -> Frame | None:
        """Receive once; the frame if that completed one.

        Raises:
            EOFError: the other end sends no more.
            FrameError: the header is none, or announces more than `limit` bytes.
            OSError: as `recv`; `BlockingIOError` where nothing has arrived.
        """
        count = sock.recv_into(self._buffer[self._filled :])
        if count == 0:
            raise EOFError
        self._filled += count
        if self._filled < self._buffer.nbytes:
            return None
        if self._header is None:
            kind, source, length = self._parse(self._buffer)
            self._header = kind, source
            self._buffer = memoryview(bytearray(length))
            self._filled = 0
            if length > 0:  # recv into an empty buffer would read as end of file
                return None
        kind, source = self._header
        frame = Frame(kind=kind, source=source, payload=self._buffer)
        self._start()
        return frame

    def _parse(self, buffer: memoryview) -> tuple[Kind, int, int]:
        magic, version, kind, source, length = HEADER.unpack(buffer)
        if magic != MAGIC:
            raise FrameError(f"expected a frame, got the bytes {bytes(buffer)!r}")
        if version != VERSION:
            raise FrameError(f"frame of version {version}, but this is version {VERSION}")
        try:
            kind = Kind(kind)
        except ValueError as error:
            raise FrameError(f"frame of unknown kind {kind}") from error
        if length > self.limit:
            raise FrameError(f"frame of {length} bytes, the limit is {self.limit}")
        return kind, source, length


def proof(
    secret: bytes,
    role: Literal["dial", "accept"],
    *,
    dialer: int,
    acceptor: int,
    dialer_nonce: bytes,
    acceptor_nonce: bytes,
) -> bytes:
    """What only one who knows the secret can say in this role, between these hosts, now."""
    statement = struct.pack("!6sII", role.encode(), dialer, acceptor)
    return hmac.digest(secret, statement + acceptor_nonce + dialer_nonce, "sha256")


def check_answer(frame: Frame, *, secret: bytes, host: int, nonce: bytes) -> bytes:
    """The acceptor's verdict on an ANSWER to its nonce: the payload of its WELCOME.

    Raises:
        FrameError: the frame is no answer, or its sender does not know the secret.
    """
    if frame.kind is not Kind.ANSWER:
        raise FrameError(f"expected an answer to the challenge, got {frame.kind.name}")
    answer = bytes(frame.payload)
    dialer_nonce, claimed = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
    prove = functools.partial(
        proof,
        secret,
        dialer=frame.source,
        acceptor=host,
        dialer_nonce=dialer_nonce,
        acceptor_nonce=nonce,
    )
    if not hmac.compare_digest(claimed, prove("dial")):
        raise FrameError(f"wrong secret from one who says to be host {frame.source}")
    return prove("accept")


def socket_address(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """Family and socket address of "unix:/path" or "tcp:ip:port" ("tcp:[ip]:port" for IPv6).

    Raises:
        ValueError: the address is neither, or its path is longer than a socket's may be.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        length = len(os.fsencode(rest))
        if length > UNIX_PATH_BYTES:
            raise ValueError(
                f"socket path of {length} bytes, the system allows {UNIX_PATH_BYTES}: {rest!r}; "
                "choose a shorter directory"
            )
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and port.isdecimal():
        ip = ipaddress.ip_address(host.strip("[]"))
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        return family, (str(ip), int(port))
    raise ValueError(f"address {address!r} is neither 'unix:/path' nor 'tcp:ip:port'")


def tune(sock: socket.socket, buffer_bytes: int | None) -> None:
    """Set buffer sizes (the system's where None) and, for TCP, prompt sending and keepalive."""
    if buffer_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A machine that loses power sends no end of file: ask an idle one for a sign of life.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def dial(
    address: str,
    *,
    host: int,
    to: int,
    secret: bytes,
    timeout: float,
    buffer_bytes: int | None = None,
) -> socket.socket:
    """Connect to host `to` and shake hands within `timeout` seconds; a blocking socket.

    Raises:
        ConnectionError: naming host and address, if nobody listens, time is up, another host
            answers, or either end does not know the other's secret.
    """
    deadline = time.monotonic() + timeout
    family, target = socket_address(address)
    sock = socket.socket(family, socket.SOCK_STREAM)

    def set_timeout() -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        sock.settimeout(remaining)

    def receive(kind: Kind, length: int) -> memoryview:
        frame = None
        while frame is None:
            set_timeout()
            frame = reader.step(sock)
        if frame.source != to:
            raise FrameError(f"host {frame.source} answers there")
        if frame.kind is not kind or frame.payload.nbytes != length:
            raise FrameError(f"expected {kind.name}, got {frame.kind.name}")
        return frame.payload

    reader = FrameReader(HANDSHAKE_FRAME_BYTES)
    try:
        tune(sock, buffer_bytes)
        while True:
            set_timeout()
            try:
                sock.connect(target)
                break
            except BlockingIOError:  # the queue of a Unix listener is full
                time.sleep(0.005)
        nonce = secrets.token_bytes(NONCE_BYTES)
        prove = functools.partial(
            proof,
            secret,
            dialer=host,
            acceptor=to,
            dialer_nonce=nonce,
            acceptor_nonce=bytes(receive(Kind.CHALLENGE, NONCE_BYTES)),
        )
        answer = nonce + prove("dial")
        set_timeout()
        sock.sendall(header(Kind.ANSWER, host, len(answer)) + answer)
        if not hmac.compare_digest(receive(Kind.WELCOME, PROOF_BYTES), prove("accept")):
            raise FrameError("wrong secret there")
        sock.settimeout(None)
        return sock
    except (OSError, EOFError) as error:
        sock.close()
        if isinstance(error, TimeoutError):
            reason = f"no answer within {timeout:.3g} s"
        elif isinstance(error, EOFError):
            reason = "refused in the handshake (another secret, or this host number is taken)"
        else:
            reason = str(error)
        raise ConnectionError(
            f"host {host} cannot connect to host {to} at {address}: {reason}"
        ) from error


@dataclass(kw_only=True, eq=False)
class _Stranger:
    """An accepted connection whose other end has proved nothing yet."""

    sock: socket.socket
    nonce: bytes
    deadline: float
    reader: FrameReader


class Acceptor:
    """Listens, and hands over the connections of hosts that know the secret.

    It runs in the thread of whoever polls `epoll`, and never blocks. It logs whom it refuses.

    Args:
        address: where to listen; the port of a TCP address may be 0.
        host: number of this host; only lower ones may dial it.
        secret: the run's.
        epoll: where it registers its sockets.
        may_join: whether a host of this number is welcome.
        on_host: is given a host's number and its non-blocking socket.
        on_error: is given what kept it from accepting.
        buffer_bytes: size of the sockets' buffers, the system's if None.
    """

    def __init__(
        self,
        address: str,
        *,
        host: int,
        secret: bytes,
        epoll: select.epoll,
        may_join: Callable[[int], bool],
        on_host: Callable[[int, socket.socket], None],
        on_error: Callable[[BaseException], None],
        buffer_bytes: int | None = None,
    ) -> None:
        self._host, self._secret, self._epoll = host, secret, epoll
        self._may_join, self._on_host, self._on_error = may_join, on_host, on_error
        self._buffer_bytes = buffer_bytes
        self._strangers: dict[int, _Stranger] = {}
        self._listener, self.address = _listen(address, buffer_bytes)
        self._epoll.register(self._listener, select.EPOLLIN)

    def serve(self, fd: int) -> None:
        """React to an event of this descriptor, if it is one of the acceptor's."""
        if (stranger := self._strangers.get(fd)) is not None:
            self._examine(stranger)
        elif fd == self._listener.fileno():
            self._accept()

    def tick(self, now: float) -> None:
        """End the handshakes that are overdue at monotonic time `now`."""
        if self._listener.fileno() >= 0:
            self._epoll.modify(self._listener, select.EPOLLIN)
        for stranger in [s for s in self._strangers.values() if s.deadline < now]:
            self._refuse(stranger, "no answer to the challenge in time")

    def close(self) -> None:
        """Stop listening, remove the socket's file, refuse all who are in a handshake."""
        if self._listener.fileno() >= 0:
            self._listener.close()
            if self.address.startswith("unix:"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.address.removeprefix("unix:"))
        for stranger in list(self._strangers.values()):
            self._refuse(stranger, "this host is closing")

    def forget(self) -> None:
        """Close the descriptors only: those of a forked child, whose parent still listens."""
        self._listener.close()
        for stranger in self._strangers.values():
            stranger.sock.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of file descriptors, say: try again at the next tick, do not spin.
            self._epoll.modify(self._listener, 0)
            self._on_error(error)
            return
        sock.setblocking(False)
        stranger = _Stranger(
            sock=sock,
            nonce=secrets.token_bytes(NONCE_BYTES),
            deadline=time.monotonic() + HANDSHAKE_SECONDS,
            reader=FrameReader(HANDSHAKE_FRAME_BYTES),
        )
        self._strangers[sock.fileno()] = stranger
        self._epoll.register(sock, select.EPOLLIN)
        try:
            tune(sock, self._buffer_bytes)
            sock.sendall(header(Kind.CHALLENGE, self._host, NONCE_BYTES) + stranger.nonce)
        except OSError as error:
            self._refuse(stranger, str(error))

    def _examine(self, stranger: _Stranger) -> None:
        try:
            frame = stranger.reader.step(stranger.sock)
            if frame is None:
                return
            welcome = check_answer(
                frame, secret=self._secret, host=self._host, nonce=stranger.nonce
            )
            if frame.source >= self._host or not self._may_join(frame.source):
                raise FrameError(f"host {frame.source} was here already, or should be dialled")
            stranger.sock.sendall(header(Kind.WELCOME, self._host, PROOF_BYTES) + welcome)
        except BlockingIOError:
            return
        except (OSError, EOFError) as error:
            self._refuse(stranger, str(error) or "it left in the handshake")
            return
        self._remove(stranger)
        self._on_host(frame.source, stranger.sock)

    def _refuse(self, stranger: _Stranger, reason: str) -> None:
        _log.warning("host %d refused a connection to %s: %s", self._host, self.address, reason)
        self._remove(stranger)
        stranger.sock.close()

    def _remove(self, stranger: _Stranger) -> None:
        del self._strangers[stranger.sock.fileno()]
        self._epoll.unregister(stranger.sock)


def _listen(address: str, buffer_bytes: int | None) -> tuple[socket.socket, str]:
    """A listening socket, and the address at which others reach it."""
    family, target = socket_address(address)
    if isinstance(target, tuple) and ipaddress.ip_address(target[0]).is_unspecified:
        raise ValueError(f"others cannot connect to {address!r}: name one interface's address")
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if isinstance(target, tuple):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tune(listener, buffer_bytes)
        try:
            listener.bind(target)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen at {address}: {error.strerror}") from error
        if isinstance(target, str):
            os.chmod(target, 0o600)
        listener.setblocking(False)
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    if isinstance(target, tuple):
        address = f"{address.rpartition(':')[0]}:{listener.getsockname()[1]}"
    return listener, address
