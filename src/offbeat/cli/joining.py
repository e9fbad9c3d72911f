"""Joining: the same command on each machine, and an address where they meet."""

from __future__ import annotations

import errno
import ipaddress
import socket
from pathlib import Path
from typing import NoReturn

from jsonargparse import Namespace

from ..experiment import Experiment
from ..runs import Run
from ..runtime.addresses import socket_address
from ..runtime.agent import Agent, Joining
from ..runtime.errors import RunError
from ..runtime.placement import Gathering
from ..runtime.world import Progress, World
from .coordinating import Execute, Keeping
from .credentials import certificates, shared_secret
from .errors import UsageError, one_line
from .output import write_line


class Elsewhere(Exception):
    """This machine took part in a run that another one coordinated; the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def join(parsed: Namespace, experiment: Experiment, keeping: Keeping) -> Execute:
    """Coordinate if the meeting point is this machine's and free, else take part."""
    address = endpoint(parsed.join)
    slots = 1 if parsed.slots is None else parsed.slots
    if slots < 0:
        raise UsageError(f"--slots is {slots}; it must be at least 0")
    secret, tls = shared_secret(parsed.secret), certificates(parsed.tls)
    needed = World(experiment).host_count()
    gathering = Gathering(
        listen=address,
        slots=min(slots, needed),
        secret=secret,
        patience=parsed.patience,
        tls=tls,
    )
    joining = Joining(
        coordinator=address, slots=slots, secret=secret, patience=parsed.patience, tls=tls
    )
    if parsed.take_part or not _is_free(address):
        take_part(experiment, joining)

    def execute(experiment: Experiment, progress: Progress | None, where: Path | None) -> Run:
        try:
            return keeping.coordinating(gathering)(experiment, progress, where)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Another process of this machine was faster.
            take_part(experiment, joining)

    return execute


def _is_free(address: str) -> bool:
    """Whether this machine can listen there; whoever listens first coordinates."""
    family, target = socket_address(address)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                return False
            raise UsageError(f"cannot listen at {address}: {error.strerror}") from error
    return True


def take_part(experiment: Experiment, joining: Joining) -> NoReturn:
    """Start what the coordinator says, until the run is over; raises Elsewhere."""
    agent = Agent(experiment, joining)
    try:
        over = agent.run()
    except RunError as error:
        write_line(one_line(error))
        raise Elsewhere(1) from None
    ran = ", ".join(map(str, agent.hosts)) or "none"
    write_line(f"took part with process {ran} of the run at {joining.coordinator}")
    for line in [*over.notes, *([over.error] if over.error else [])]:
        write_line(one_line(line))
    raise Elsewhere(1 if over.error else 0)


def endpoint(text: str) -> str:
    """ "tcp:ip:port" of HOST:PORT.

    Raises:
        UsageError: it is none, or the host cannot be found.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--join is {text!r}; it must be HOST:PORT, such as 10.0.0.1:29400")
    try:
        ip = str(socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this can be no name"
        raise UsageError(f"--join {text}: there is no host {host}: {reason}") from error
    return tcp_address(ip, int(port))


def tcp_address(ip: str, port: int) -> str:
    bare = ip.partition("%")[0]
    return f"tcp:[{bare}]:{port}" if ipaddress.ip_address(bare).version == 6 else f"tcp:{ip}:{port}"
