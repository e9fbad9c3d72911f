"""Acceptor: lets hosts in that prove to belong, and nobody else."""

import contextlib
import functools
import logging
import os
import secrets
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .addresses import listen, tune
from .framing import FrameError, FrameReader, Kind, header
from .handshake import HANDSHAKE_FRAME_BYTES, NONCE_BYTES, PROOF_BYTES, check_answer
from .reactor import Reactor
from .tls import has_pending

HANDSHAKE_SECONDS = 10.0
"""How long one who connects may take to prove that it knows the secret."""
STRANGERS = 256
"""How many may be in a handshake at once."""

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class _Stranger:
    """An accepted connection whose other end has proved nothing yet."""

    sock: socket.socket
    nonce: bytes
    deadline: float
    reader: FrameReader
    challenged: bool = False


class Acceptor:
    """Listens, and hands over the connections of hosts that know the secret.

    It runs in the reactor's thread, and never blocks. It logs whom it refuses.

    Args:
        addresses: where to listen; the port of a TCP address may be 0.
        host: number of this host.
        secret: the run's.
        reactor: which watches its sockets.
        may_join: whether a host of this number is welcome.
        on_host: is given a host's number and its non-blocking socket.
        buffer_bytes: size of the sockets' buffers, the system's if None.
        tls: by which TCP connections are made private.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        host: int,
        secret: bytes,
        reactor: Reactor,
        may_join: Callable[[int], bool],
        on_host: Callable[[int, socket.socket], None],
        buffer_bytes: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._host, self._secret, self._reactor = host, secret, reactor
        self._may_join, self._on_host = may_join, on_host
        self._buffer_bytes = buffer_bytes
        self._strangers: set[_Stranger] = set()
        self._listeners: dict[str, socket.socket] = {}
        try:
            for address in addresses:
                listener, reached_at = listen(address, buffer_bytes)
                self._listeners[reached_at] = listener
                reactor.watch(listener, functools.partial(self._accept, listener))
        except BaseException:
            self.close()
            raise
        self.addresses = tuple(self._listeners)

    def tick(self, now: float) -> None:
        """End the handshakes that are overdue at monotonic time `now`."""
        for stranger in [s for s in self._strangers if s.deadline < now]:
            self._refuse(stranger, "no answer to the challenge in time")
        if len(self._strangers) < STRANGERS:
            for listener in self._listeners.values():
                self._reactor.expect(listener, select.EPOLLIN)

    def close(self) -> None:
        """Stop listening, remove the sockets' files, refuse all who are in a handshake."""
        while self._listeners:
            address, listener = self._listeners.popitem()
            self._reactor.unwatch(listener)
            listener.close()
            if address.startswith("unix:"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(address.removeprefix("unix:"))
        for stranger in list(self._strangers):
            self._refuse(stranger, "this host is closing", logging.DEBUG)

    def forget(self) -> None:
        """Close the descriptors only: those of a forked child, whose parent still listens."""
        for listener in self._listeners.values():
            listener.close()
        for stranger in self._strangers:
            stranger.sock.close()

    def _accept(self, listener: socket.socket) -> None:
        if len(self._strangers) >= STRANGERS:
            # They wait outside, in the system's queue, until a tick finds room.
            self._reactor.expect(listener, 0)
            return
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of file descriptors, say: try again at the next tick, do not spin.
            self._reactor.expect(listener, 0)
            _log.warning("host %d cannot accept a connection: %s", self._host, error)
            return
        try:
            sock.setblocking(False)
            tune(sock, self._buffer_bytes)
            if self._tls is not None and sock.family != socket.AF_UNIX:
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError as error:
            sock.close()
            _log.warning("host %d refused a connection: %s", self._host, error)
            return
        stranger = _Stranger(
            sock=sock,
            nonce=secrets.token_bytes(NONCE_BYTES),
            deadline=time.monotonic() + HANDSHAKE_SECONDS,
            reader=FrameReader(HANDSHAKE_FRAME_BYTES),
        )
        self._strangers.add(stranger)
        self._reactor.watch(sock, functools.partial(self._examine, stranger))
        self._examine(stranger)

    def _challenge(self, stranger: _Stranger) -> None:
        if isinstance(stranger.sock, ssl.SSLSocket):
            stranger.sock.do_handshake()
        stranger.sock.sendall(header(Kind.CHALLENGE, self._host, NONCE_BYTES) + stranger.nonce)
        stranger.challenged = True

    def _examine(self, stranger: _Stranger) -> None:
        try:
            if not stranger.challenged:
                self._challenge(stranger)
            while (frame := stranger.reader.step(stranger.sock)) is None:
                if not has_pending(stranger.sock):
                    return
            welcome = check_answer(
                frame, secret=self._secret, host=self._host, nonce=stranger.nonce
            )
            if not self._may_join(frame.source):
                stranger.sock.sendall(header(Kind.TAKEN, self._host, 0))
                raise FrameError(f"there is a host {frame.source} already")
            stranger.sock.sendall(header(Kind.WELCOME, self._host, PROOF_BYTES) + welcome)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, EOFError) as error:
            self._refuse(stranger, str(error) or "it left in the handshake")
            return
        self._remove(stranger)
        self._on_host(frame.source, stranger.sock)

    def _refuse(self, stranger: _Stranger, reason: str, level: int = logging.WARNING) -> None:
        _log.log(level, "host %d refused a connection: %s", self._host, reason)
        self._remove(stranger)
        stranger.sock.close()

    def _remove(self, stranger: _Stranger) -> None:
        self._strangers.discard(stranger)
        self._reactor.unwatch(stranger.sock)
