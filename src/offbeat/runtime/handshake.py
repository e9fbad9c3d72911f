"""The handshake that opens a connection.

The first three frames of a connection prove to both ends that the other knows the run's secret:

    acceptor -> dialer    CHALLENGE  nonce_a
    dialer   -> acceptor  ANSWER     nonce_d, HMAC-SHA256(secret, "dial", hosts, nonces)
    acceptor -> dialer    WELCOME    HMAC-SHA256(secret, "accept", hosts, nonces)

Neither proof can be replayed (nonces) nor reflected (roles and host numbers), and nobody without
the secret is shown one by an acceptor. What follows is neither encrypted nor signed.
"""

import functools
import hmac
import secrets
import socket
import ssl
import struct
import time
from typing import Literal

from .addresses import socket_address, tune
from .framing import Frame, FrameError, FrameReader, Kind, header

NONCE_BYTES = 32
PROOF_BYTES = 32
HANDSHAKE_FRAME_BYTES = 128
"""Limit on a payload before its sender is trusted: a stranger cannot make us allocate."""


class HostTaken(ConnectionError):
    """A host of the same number is connected there."""


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


def dial(
    address: str,
    *,
    host: int,
    to: int,
    secret: bytes,
    timeout: float,
    buffer_bytes: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> socket.socket:
    """Connect to host `to` and shake hands within `timeout` seconds; a blocking socket.

    With `tls` a TCP connection is one of TLS.

    Raises:
        HostTaken: another host of this number is connected there, or its end is not noticed yet.
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
        if frame.kind is Kind.TAKEN:
            raise HostTaken(f"there is a host {host} already")
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
        if tls is not None and family != socket.AF_UNIX:
            set_timeout()
            sock = tls.wrap_socket(sock)
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
        elif isinstance(error, ssl.SSLError):
            reason = f"TLS fails (have both ends certificates of one authority?): {error.reason}"
        elif isinstance(error, (EOFError, ConnectionResetError)):
            reason = "refused in the handshake (is the secret that of the same run?)"
        else:
            reason = str(error)
        kind = HostTaken if isinstance(error, HostTaken) else ConnectionError
        text = f"host {host} cannot connect to host {to} at {address}: {reason}"
        raise kind(text) from error
