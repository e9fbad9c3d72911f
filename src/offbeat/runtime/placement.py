"""Placement: starts the processes of a run, here or by agents, and tells them where they stand."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import control
from .assignment import Assignment
from .control import COORDINATOR
from .hosting import Hosting
from .line import Line
from .replicas import may_share
from .seats import Seat
from .shared import MappedParameters
from .spawning import Spawner, socket_names
from .tickets import Tickets
from .tls import TLS
from .world import World

CHAOS = "OFFBEAT_CHAOS"
"""The variable that says where a process is to kill itself; see `offbeat.testing.chaos`."""


@dataclass(frozen=True, kw_only=True)
class Gathering:
    """How a run is spread over machines.

    Args:
        listen: where agents and processes of other machines reach the coordinator, as
            "tcp:ip:port"; port 0 lets the system choose.
        slots: how many of the run's processes this machine starts, the first ones.
        secret: what everyone who takes part knows.
        patience: seconds for all the others to come.
        on_listening: told where the coordinator can be reached, before anything is started.
        tls: certificates, for connections between machines; they are not encrypted if None.
        complete: whether the machines come for all processes, also for those that departed before
            the checkpoint from which the run goes on; else these stay away.
    """

    listen: str
    slots: int
    secret: bytes
    patience: float = 120.0
    on_listening: Callable[[str], None] = lambda address: None
    tls: TLS | None = None
    complete: bool = False


class Placement:
    """The processes of one run.

    Args:
        seats: of all processes, by number; entries are replaced by those who come in their place.
        journals: where the journals of the nodes go; nowhere if None.
        replaces: whether lost processes are started anew.
        note: told, in one line, what was wrong with what others sent.

    Raises:
        OSError: the gathering's address is not this machine's, or is taken.
    """

    def __init__(
        self,
        world: World,
        seats: Sequence[Seat],
        journals: Path | None,
        gathering: Gathering | None,
        *,
        replaces: bool,
        note: Callable[[str], None],
    ) -> None:
        experiment = world.experiment
        self._experiment = experiment
        self._seats = seats
        self._journals = journals
        self._gathering = gathering
        self._replaces = replaces
        self._secret = secrets.token_bytes(32) if gathering is None else gathering.secret
        self._tls = None if gathering is None else gathering.tls
        self._names = socket_names()
        self._shared: MappedParameters | None = None
        self.replica: MappedParameters | None = None
        """The parameters, if all workers keep them once."""
        self.tickets: Tickets | None = None
        listen = [f"{self._names}/coordinator"]
        if gathering is not None:
            listen.append(gathering.listen)
        self.line = Line(COORDINATOR, listen, self._secret, note, self._tls)
        self.spawner = Spawner()
        here = [seat for seat in seats if seat.gone is None]
        # Who joins late is started here whatever the slots, and so it is when the run is resumed.
        late = [s for s in here if any(map(experiment.cluster.begins_absent, s.ranks))]
        on_time = [seat for seat in here if seat not in late]
        elsewhere = [] if gathering is None else on_time[gathering.slots :]
        self.hosting = Hosting(experiment, elsewhere, journals, self.line.send, replaces=replaces)
        self._first = [seat for seat in here if seat not in elsewhere]
        if experiment.method.shares_parameters:
            self._shared = MappedParameters(world.initial, experiment.cluster.workers)
        elif gathering is None and may_share(world):
            self.replica = MappedParameters(world.initial, experiment.cluster.workers)

    def begin(self, tickets: Tickets) -> None:
        """Let agents come, and start the processes of this machine."""
        self.tickets = tickets
        if self._gathering is not None:
            self._gathering.on_listening(self.line.addresses[-1])
        self.spawner.start(self._assignment(seat) for seat in self._first)

    def add(self, seat: Seat) -> None:
        """Start a process that comes while the run goes on."""
        if seat.agent is None:
            self.spawner.start([self._assignment(seat)])
        else:
            self.hosting.again(seat)

    def kill(self, seat: Seat) -> None:
        """Kill a process where it is."""
        if seat.agent is None:
            self.spawner.kill(seat.host)
        else:
            self.line.send(seat.agent, control.Kill(host=seat.host))

    def introduce(self, seat: Seat, nodes: Mapping[int, bytes]) -> None:
        """Tell a member where the others are, and from which states its nodes go on."""
        others = [s for s in self._seats if s is not seat and s.gone is None and s.addresses]
        word = control.Meet(
            addresses={s.host: _reached(s, seat) for s in others},
            machines=self._machines(),
            nodes=_as_tensors(nodes),
            absent=self._absent(),
            late=seat.arriving,
        )
        self.line.send(seat.host, word)

    def restore(self, seat: Seat, nodes: Mapping[int, bytes]) -> None:
        """Tell a member that is there already from which states its nodes go on."""
        word = control.Restore(
            machines=self._machines(), nodes=_as_tensors(nodes), absent=self._absent()
        )
        self.line.send(seat.host, word)

    def end(self, patience: float, meanwhile: Callable[[], Any]) -> None:
        """Wait until the processes here are over, then end those that are not."""
        self.spawner.end(patience, meanwhile)

    def dismiss(self, over: control.Over, patience: float, meanwhile: Callable[[], Any]) -> None:
        """Tell the agents how the run ended, and wait for what they still send."""
        for agent in self.hosting.agents:
            self.line.send(agent, over)
        deadline = time.monotonic() + patience
        while self.hosting.agents and time.monotonic() < deadline:
            meanwhile()

    def close(self) -> None:
        """Let go of what the processes shared."""
        if self.tickets is not None:
            self.tickets.close()
        self._shared = self.replica = None

    def _assignment(self, seat: Seat) -> Assignment:
        coordinator, *others = self.line.addresses
        return Assignment(
            experiment=self._experiment,
            host=seat.host,
            listen=(
                f"{self._names}/{seat.host}",
                *(f"{address.rpartition(':')[0]}:0" for address in others),
            ),
            coordinator=coordinator,
            secret=self._secret,
            tls=self._tls,
            journals=self._journals,
            tickets=self.tickets if self._gathering is None else None,
            replaces=self._replaces,
            shared=self._shared,
            replica=self.replica,
            # Whoever comes in the place of one that has killed itself is spared.
            chaos=None if seat.arriving else os.environ.get(CHAOS),
        )

    def _machines(self) -> tuple[int, ...]:
        """The machine of each process, by any number."""
        agents = sorted({seat.agent for seat in self._seats if seat.agent is not None})
        return tuple(0 if s.agent is None else 1 + agents.index(s.agent) for s in self._seats)

    def _absent(self) -> tuple[int, ...]:
        return tuple(sorted(rank for seat in self._seats if seat.gone for rank in seat.ranks))


def _as_tensors(nodes: Mapping[int, bytes]) -> dict[int, Tensor]:
    """States, as they travel."""
    return {
        rank: torch.frombuffer(bytearray(state), dtype=torch.uint8) for rank, state in nodes.items()
    }


def _reached(seat: Seat, by: Seat) -> str:
    """Where a process reaches another: the first address on its own machine, else the last."""
    return seat.addresses[0 if seat.agent == by.agent else -1]
