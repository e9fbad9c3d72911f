"""Addresses: "unix:/path", "unix:@name", "tcp:ip:port", and sockets that listen there."""

import ipaddress
import os
import socket

UNIX_PATH_BYTES = 107


def socket_address(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """Family and socket address of "unix:/path" or "tcp:ip:port" ("tcp:[ip]:port" for IPv6).

    "unix:@name" has no file: the name is free again when its process ends, however that is.

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
        return socket.AF_UNIX, f"\0{rest[1:]}" if rest.startswith("@") else rest
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and port.isdecimal():
        ip = ipaddress.ip_address(host.strip("[]"))
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        return family, (str(ip), int(port))
    raise ValueError(f"address {address!r} is neither 'unix:/path' nor 'tcp:ip:port'")


def tune(sock: socket.socket, buffer_bytes: int | None) -> None:
    """Set buffer sizes (the system's where None) and, for TCP, prompt sending."""
    if buffer_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def listen(address: str, buffer_bytes: int | None) -> tuple[socket.socket, str]:
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
        if isinstance(target, str) and not target.startswith("\0"):
            os.chmod(target, 0o600)
        listener.setblocking(False)
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    if isinstance(target, tuple):
        address = f"{address.rpartition(':')[0]}:{listener.getsockname()[1]}"
    return listener, address
