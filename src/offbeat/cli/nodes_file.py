"""Nodes file: the machines that it names, and the run started on each by a remote shell."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from jsonargparse import Namespace

from ..experiment import Experiment
from ..runtime.errors import RunError
from ..runtime.placement import Gathering
from ..runtime.world import World
from .credentials import certificates
from .errors import UsageError
from .joining import endpoint, tcp_address

ENDING_SECONDS = 10.0
"""In which a machine's shell ends with the run, before it is killed."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One line of the file of machines."""

    name: str
    slots: int


@contextmanager
def started_everywhere(
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
    if not _words(parsed.rsh):
        raise UsageError("--rsh is empty; name a command such as ssh")
    secret, tls = secrets.token_hex(32), certificates(parsed.tls)
    listen = (
        tcp_address(_address_towards(hosts[0].name), 0)
        if parsed.join is None
        else endpoint(parsed.join)
    )
    shells: list[subprocess.Popen[bytes]] = []

    def start(address: str) -> None:
        join = address.removeprefix("tcp:")
        for machine in hosts:
            command = [sys.executable, "-m", "offbeat", "run", *_without(options)]
            command += ["--join", join, "--take-part", "--slots", str(machine.slots)]
            command += ["--secret", "-"]
            remote = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(command)}"
            shell = _words(parsed.rsh.replace("{host}", machine.name))
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
            try:
                process.stdin.write(f"{secret}\n".encode())
                process.stdin.flush()
            except BrokenPipeError:
                raise RunError(
                    f"{shell[0]} (--rsh) has ended with exit code {process.wait()}, and started "
                    f"nothing on {machine.name}"
                ) from None

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


def _words(rsh: str) -> list[str]:
    """As a shell splits them."""
    try:
        return shlex.split(rsh)
    except ValueError as error:
        raise UsageError(f"--rsh is {rsh!r}, which a shell cannot read: {error}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a machine's shell, which ends with the run."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(timeout=ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        # What it has started, too: a wrapper's own shell would go on and keep our output open.
        os.killpg(process.pid, signal.SIGKILL)
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
        if not words[0].isprintable():
            raise UsageError(f"{path}, line {number}: {words[0]!r} is no name of a machine")
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
    except (OSError, UnicodeError):
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
