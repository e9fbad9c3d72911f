"""Machines: on which ones `offbeat run` runs, and what each of them does there."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser, Namespace

from ..experiment import Experiment
from ..runs import Run
from ..runtime import torchrun
from ..runtime.addresses import socket_address
from ..runtime.agent import Agent, Joining
from ..runtime.checkpoint import Checkpoint
from ..runtime.placement import Gathering
from ..runtime.processes import run_processes
from ..runtime.scheduler import RunError
from ..runtime.tls import TLS, TLSError
from ..runtime.world import Progress, World
from .errors import UsageError, one_line
from .output import write_line

SECRET = "OFFBEAT_SECRET"
LEAST_SECRET = 16
"""Characters."""


def add_options(parser: ArgumentParser) -> None:
    """The options that spread a run over several machines."""
    group = parser.add_argument_group("several machines")
    group.add_argument(
        "--join",
        type=str | None,
        help="HOST:PORT where the machines of a run meet: give the same command on each of them, "
        "and the one whose address it is coordinates the run",
    )
    group.add_argument(
        "--slots",
        type=int | None,
        help="processes of the run that this machine starts; 1 if not given",
    )
    group.add_argument(
        "--secret",
        type=str | None,
        help=f"file that holds what all machines know; the variable {SECRET} if not given, and "
        "- is the first line of the input",
    )
    group.add_argument(
        "--tls",
        type=str | None,
        help="folder with cert.pem, key.pem and the authority's ca.pem: machines show each other "
        "certificates, and what they say is encrypted",
    )
    group.add_argument(
        "--patience", type=float, default=120.0, help="seconds to wait for the other machines"
    )
    group.add_argument(
        "--nodes",
        type=str | None,
        help="file that names a machine a line, as `name` or `name slots=4`: start the run on all",
    )
    group.add_argument(
        "--rsh", type=str, default="ssh", help="the command by which --nodes reaches a machine"
    )


class Elsewhere(Exception):
    """This machine took part in a run that another one coordinated; the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


Execute = Callable[[Experiment, Progress | None, Path | None], Run]


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What the coordinator does about checkpoints: seconds between them, and where it goes on."""

    every: float | None
    resume: Checkpoint | None

    def coordinating(self, gathering: Gathering | None) -> Execute:
        def execute(experiment: Experiment, progress: Progress | None, where: Path | None) -> Run:
            return run_processes(
                experiment,
                where,
                progress,
                gathering,
                checkpoint_every=self.every,
                resume=self.resume,
            )

        return execute


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One line of the file of machines."""

    name: str
    slots: int


@contextmanager
def machines(
    parsed: Namespace, experiment: Experiment, options: Sequence[str], keeping: Keeping
) -> Generator[Execute]:
    """How to carry the run out, on this machine alone or with others.

    Raises:
        Elsewhere: another machine coordinates the run; this one has done its part.
        UsageError: the options do not fit together.
    """
    for name in ("slots", "secret", "tls"):
        if parsed[name] is not None and parsed.join is None and parsed.nodes is None:
            raise UsageError(f"--{name} goes with --join HOST:PORT; without it the run stays here")
    if parsed.nodes is not None:
        with _started_everywhere(parsed, experiment, options) as gathering:
            yield keeping.coordinating(gathering)
    elif parsed.join is not None:
        yield _joining(parsed, experiment, keeping)
    elif torchrun.present():
        yield _ranked(parsed.patience, experiment, keeping)
    else:
        yield keeping.coordinating(None)


# The same command on each machine


def _joining(parsed: Namespace, experiment: Experiment, keeping: Keeping) -> Execute:
    """Coordinate if the meeting point is this machine's and free, else take part."""
    address = endpoint(parsed.join)
    slots = 1 if parsed.slots is None else parsed.slots
    if slots < 0:
        raise UsageError(f"--slots is {slots}; it must be at least 0")
    secret, tls = shared_secret(parsed.secret), _tls(parsed.tls)
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
    if not _is_free(address):
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
    except OSError as error:
        raise UsageError(f"--join {text}: there is no host {host}: {error.strerror}") from error
    return _tcp(ip, int(port))


def _tcp(ip: str, port: int) -> str:
    bare = ip.partition("%")[0]
    return f"tcp:[{bare}]:{port}" if ipaddress.ip_address(bare).version == 6 else f"tcp:{ip}:{port}"


def _tls(folder: str | None) -> TLS | None:
    """The certificates in that folder.

    Raises:
        UsageError: one is missing or cannot be used.
    """
    try:
        return None if folder is None else TLS.of_folder(Path(folder))
    except TLSError as error:
        raise UsageError(f"--tls {folder}: {error}") from error


def shared_secret(file: str | None) -> bytes:
    """What all machines of the run know.

    Raises:
        UsageError: there is none, it is short, or others on this machine may read it.
    """
    if file == "-":
        text = sys.stdin.readline().strip()
        origin = "the first line of the input"
    elif file is not None:
        path, origin = Path(file), file
        try:
            text = path.read_text().strip()
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read --secret {file}: {error}") from error
        if mode & 0o077:
            raise UsageError(f"--secret {file} can be read by others: chmod 600 {file}")
    else:
        text, origin = os.environ.get(SECRET, "").strip(), SECRET
        if not text:
            raise UsageError(
                f"machines that meet need a common secret: give --secret FILE or set {SECRET}, for "
                "example to the output of `openssl rand -hex 32`"
            )
    if len(text) < LEAST_SECRET:
        raise UsageError(
            f"the secret in {origin} has {len(text)} characters; at least {LEAST_SECRET} are needed"
        )
    return text.encode()


# Ranks of torchrun


def _ranked(patience: float, experiment: Experiment, keeping: Keeping) -> Execute:
    """Rank 0 coordinates; every rank starts the process of its own number."""
    needed = World(experiment).host_count()
    try:
        rank = torchrun.meet(patience)
        if rank.size != needed:
            workers, servers = experiment.cluster.workers, experiment.method.server_count
            raise UsageError(
                f"{workers} workers and {servers} servers of {type(experiment.method).__name__} "
                f"take {needed} processes, and there are {rank.size} ranks: start {needed} ranks, "
                f"or change --workers"
            )
        if rank.rank > 0:
            joining = Joining(
                coordinator=rank.coordinator(),
                slots=1,
                secret=rank.secret,
                hosts=(rank.rank,),
                patience=patience,
            )
            take_part(experiment, joining)
        return keeping.coordinating(
            Gathering(
                listen=rank.listen,
                slots=1,
                secret=rank.secret,
                patience=patience,
                on_listening=rank.publish,
            )
        )
    except RunError as error:
        write_line(one_line(error))
        raise Elsewhere(1) from None


# A file of machines


@contextmanager
def _started_everywhere(
    parsed: Namespace, experiment: Experiment, options: Sequence[str]
) -> Generator[Gathering]:
    """Start this command on every machine of the file, to take part in what is coordinated here."""
    hosts = read_machines(Path(parsed.nodes))
    needed, offered = World(experiment).host_count(), sum(machine.slots for machine in hosts)
    if offered < needed:
        raise UsageError(
            f"the run takes {needed} processes and the machines of {parsed.nodes} have {offered} "
            "slots: add machines or `slots=`, or lower --workers"
        )
    secret, tls = secrets.token_hex(32), _tls(parsed.tls)
    listen = (
        _tcp(_address_towards(hosts[0].name), 0) if parsed.join is None else endpoint(parsed.join)
    )
    shells: list[subprocess.Popen[bytes]] = []

    def start(address: str) -> None:
        join = address.removeprefix("tcp:")
        for machine in hosts:
            command = [sys.executable, "-m", "offbeat", "run", *_without(options)]
            command += ["--join", join, "--slots", str(machine.slots), "--secret", "-"]
            remote = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(command)}"
            shell = shlex.split(parsed.rsh.replace("{host}", machine.name))
            if "{host}" not in parsed.rsh:
                shell.append(machine.name)
            try:
                process = subprocess.Popen(
                    [*shell, remote], stdin=subprocess.PIPE, start_new_session=True
                )
            except OSError as error:
                raise RunError(f"cannot start {shell[0]} (--rsh): {error.strerror}") from error
            shells.append(process)
            assert process.stdin is not None
            process.stdin.write(f"{secret}\n".encode())
            process.stdin.flush()

    try:
        yield Gathering(
            listen=listen,
            slots=0,
            secret=secret.encode(),
            patience=parsed.patience,
            on_listening=start,
            tls=tls,
        )
    finally:
        for process in shells:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a machine's shell, which ends with the run."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=10.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def read_machines(path: Path) -> list[Machine]:
    """The machines that a file names, a line each; `#` begins a comment.

    Raises:
        UsageError: it cannot be read, names none, or a line is wrong.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read --nodes {path}: {error}") from error
    found: list[Machine] = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        machine = Machine(name=words[0], slots=1)
        for word in words[1:]:
            slots = re.fullmatch(r"slots=([1-9]\d*)", word)
            if slots is None:
                raise UsageError(
                    f"{path}, line {number}: {word!r} is no `slots=4`; a line is `name` or "
                    "`name slots=4`"
                )
            machine = replace(machine, slots=int(slots[1]))
        found.append(machine)
    if not found:
        raise UsageError(f"--nodes {path} names no machine")
    return found


def _address_towards(name: str) -> str:
    """This machine's address on the way to another."""
    try:
        family, _, _, _, target = socket.getaddrinfo(name, 22, type=socket.SOCK_DGRAM)[0]
    except OSError:
        # A name that only --rsh knows.
        raise UsageError(
            f"machine {name} has no address that can be found here: say by --join HOST:PORT where "
            "the machines reach this one"
        ) from None
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def _without(options: Sequence[str]) -> list[str]:
    """The options but for those that the coordinator alone needs, and their values."""
    kept: list[str] = []
    waiting = iter(options)
    for option in waiting:
        name = option.partition("=")[0]
        if name in ("--nodes", "--rsh", "--join", "--out", "--log", "--checkpoint", "--resume"):
            if "=" not in option:
                next(waiting, None)
        elif name != "--plots":
            kept.append(option)
    return kept
