"""Agent: starts and watches the processes that another machine's coordinator gives to this one."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..experiment import Experiment, to_config
from ..runs import versions
from . import control
from .assignment import Assignment
from .control import COORDINATOR, FIRST_AGENT
from .errors import RunError
from .line import Line
from .spawning import Spawner, require_sendable, socket_names, uninterrupted
from .tls import TLS

FAREWELL = 8.0
"""Seconds that processes have to end by themselves."""


@dataclass(frozen=True, kw_only=True)
class Joining:
    """Taking part in a run that another process coordinates.

    Args:
        coordinator: its address, as "tcp:ip:port".
        slots: how many processes this machine can start.
        secret: what everyone who takes part knows.
        hosts: the numbers of the processes, where something else has numbered them.
        patience: seconds for the coordinator to be there.
        tls: certificates, for connections between machines; they are not encrypted if None.
    """

    coordinator: str
    slots: int
    secret: bytes
    hosts: tuple[int, ...] = ()
    patience: float = 120.0
    tls: TLS | None = None


class Agent:
    """One machine's part in a run.

    Raises:
        RunError: in one line, if it may not take part or the coordinator is gone.
    """

    def __init__(self, experiment: Experiment, joining: Joining) -> None:
        require_sendable(experiment)
        self.experiment = experiment
        self.joining = joining
        self.hosts: tuple[int, ...] = ()
        """The processes that were given to this machine."""
        self.over: control.Over | None = None
        self.notes: list[str] = []
        """What was wrong with what others sent."""

    def run(self) -> control.Over:
        """Take part until the run is over; leaves no process and no file behind."""
        self.scratch = Path(tempfile.mkdtemp(prefix=f"offbeat-{os.getpid()}-", dir="/tmp"))
        self.names = socket_names()
        self.spawner = Spawner()
        number = FIRST_AGENT + secrets.randbelow(COORDINATOR - FIRST_AGENT)
        try:
            listen = [f"{self.names}/agent"]
            with Line(
                number, listen, self.joining.secret, self._note, self.joining.tls
            ) as self.line:
                try:
                    return self._take_part()
                finally:
                    with uninterrupted():
                        self.spawner.end(FAREWELL if self.over else 0.0, self._idle)
                        self._send_journals()
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _take_part(self) -> control.Over:
        joining = self.joining
        self._connect()
        experiment = to_config(self.experiment)
        self._tell(
            control.Offer(
                slots=joining.slots,
                experiment=experiment,
                versions=versions(),
                hosts=joining.hosts,
            )
        )
        while self.over is None:
            for host, how in self.spawner.ended().items():
                self._report(host, how)
            for _, word in self.line.hear(0.05):
                if word is None:
                    raise RunError(f"the coordinator at {joining.coordinator} is gone")
                self._heed(word)
        return self.over

    def _connect(self) -> None:
        """Reach the coordinator, which may not be there yet."""
        deadline = time.monotonic() + self.joining.patience
        while True:
            try:
                patience = max(0.1, deadline - time.monotonic())
                self.line.dial(COORDINATOR, self.joining.coordinator, patience)
                return
            except ConnectionError as error:
                if time.monotonic() > deadline or "refused in the handshake" in str(error):
                    where = self.joining.coordinator
                    # Before it are numbers of hosts, which mean nothing to a user.
                    reason = str(error).partition(f"{where}: ")[2] or error
                    raise RunError(f"cannot join the run at {where}: {reason}") from None
                time.sleep(0.2)

    def _heed(self, word: Any) -> None:
        if isinstance(word, control.Refused):
            raise RunError(f"refused by the coordinator: {word.text}")
        if isinstance(word, control.Over):
            self.over = word
        elif isinstance(word, control.Kill) and word.host in self.spawner:
            self.spawner.kill(word.host)
        elif isinstance(word, control.Assigned):
            self._start(word)

    def _start(self, word: control.Assigned) -> None:
        self.hosts = tuple(sorted({*self.hosts, *word.hosts}))
        ip = _own_ip(self.joining.coordinator)
        self.spawner.start(
            Assignment(
                experiment=self.experiment,
                host=host,
                listen=(f"{self.names}/{host}", f"tcp:{ip}:0"),
                coordinator=self.joining.coordinator,
                secret=self.joining.secret,
                tls=self.joining.tls,
                journals=self.scratch if word.journals else None,
                scratch=self.scratch,
                replaces=word.replaces,
            )
            for host in word.hosts
        )

    def _report(self, host: int, how: str) -> None:
        self._tell(control.Ended(host=host, how=how))

    def _send_journals(self) -> None:
        for path in sorted(self.scratch.glob("node-*")):
            self._tell(control.Journal(name=path.name, content=path.read_bytes()))

    def _idle(self) -> None:
        time.sleep(0.02)

    def _tell(self, word: object) -> None:
        self.line.send(COORDINATOR, word)

    def _note(self, text: str) -> None:
        self.notes.append(text)


def _own_ip(address: str) -> str:
    """This machine's address on the way to another."""
    ip, _, port = address.removeprefix("tcp:").rpartition(":")
    ip = ip.strip("[]")
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: only a way is looked up.
        probe.connect((ip, int(port)))
        found = probe.getsockname()[0]
    return f"[{found}]" if family == socket.AF_INET6 else found
