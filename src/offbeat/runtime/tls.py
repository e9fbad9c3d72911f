"""TLS between machines: both ends show a certificate that the run's authority has signed."""

import socket
import ssl
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

BYTES_PER_WRITE = 1 << 20
"""After so many others have their turn; one record has 16 KiB at most."""


class TLSError(ValueError):
    """Certificates that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class TLS:
    """Files, in PEM form, by which the hosts of a run know each other (TLS 1.3).

    Names in certificates are not looked at: whoever has one of this authority may take part, if
    it knows the run's secret. So make an authority of your own, and do not name a public one.

    Raises:
        TLSError: a file cannot be read, is none such, or key and certificate are of two pairs.
    """

    cert: Path
    """This host's certificate."""
    key: Path
    """The certificate's private key, without a passphrase."""
    ca: Path
    """The authority's certificate."""

    def __post_init__(self) -> None:
        self.context(server=True)

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """The files cert.pem, key.pem and ca.pem of a folder."""
        return cls(cert=folder / "cert.pem", key=folder / "key.pem", ca=folder / "ca.pem")

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Settings of one end of a connection."""
        protocol = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
        context = ssl.SSLContext(protocol)
        context.sslsocket_class = TLSSocket
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        if server:
            context.num_tickets = 0
        for name, path in (("cert", self.cert), ("key", self.key), ("ca", self.ca)):
            try:
                path.read_bytes()
            except OSError as error:
                raise TLSError(f"tls.{name}: cannot read {path}: {error.strerror}") from error
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise TLSError(f"tls.ca: {self.ca} holds no certificate in PEM form") from error
        try:
            # Empty: better no passphrase than a prompt in the middle of a run.
            context.load_cert_chain(self.cert, self.key, password="")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                text = f"tls.key: {self.key} is not the key of the certificate {self.cert}"
            else:
                text = (
                    f"tls.cert, tls.key: {self.cert} or {self.key} is not in PEM form, or the key "
                    "has a passphrase: take it off (openssl pkey)"
                )
            raise TLSError(text) from error
        return context


class TLSSocket(ssl.SSLSocket):
    """A TLS connection that is used like a plain socket, by a reader and a writer at once."""

    _lock: threading.Lock

    def __new__(cls, *args: Any, **options: Any) -> Self:
        made = super().__new__(cls, *args, **options)
        # OpenSSL's connections are for one thread at a time.
        made._lock = threading.Lock()
        return made

    def sendmsg(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, buffers: Iterable[memoryview], ancillary: Sequence[Any] = (), flags: int = 0
    ) -> int:
        """As of a plain non-blocking socket; there are no ancillary data and no flags here."""
        total = 0
        with self._lock:
            for buffer in buffers:
                view = buffer
                while view.nbytes:
                    try:
                        sent = self.send(view)
                    except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                        if total:
                            return total
                        raise BlockingIOError from None
                    total += sent
                    view = view[sent:]
                    if total >= BYTES_PER_WRITE:
                        return total
        return total

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """As of a plain socket."""
        with self._lock:
            try:
                return super().recv_into(buffer, nbytes, flags)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise BlockingIOError from None

    def shutdown(self, how: int) -> None:
        """As of a plain socket: what the other end still sends can be read."""
        socket.socket.shutdown(self, how)


def has_pending(sock: socket.socket) -> bool:
    """Whether bytes have been received that no wait for the descriptor will announce."""
    return isinstance(sock, TLSSocket) and sock.pending() > 0
