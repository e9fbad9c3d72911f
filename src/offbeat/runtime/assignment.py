"""Assignment: what a process of a real run is given when it is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..experiment import Experiment
from .shared import MappedParameters
from .tickets import Tickets
from .tls import TLS


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """All that a child has to know before it reaches the coordinator.

    Args:
        listen: where it listens.
        coordinator: where the coordinator listens.
        tickets: the budget, where all processes are on one machine; else the coordinator's to
            grant.
        scratch: a folder to be removed if whoever started the process is gone.
        tls: certificates, for connections between machines.
        replaces: whether a process that is lost, and that the method needs, is started anew.
        shared: the parameters, where all workers of the machine share them.
        replica: the same, where the method's workers hold the same parameters anyway.
        chaos: where the process kills itself, as `offbeat.testing.chaos` reads it.
    """

    experiment: Experiment
    host: int
    listen: tuple[str, ...]
    coordinator: str
    secret: bytes
    journals: Path | None
    tickets: Tickets | None = None
    scratch: Path | None = None
    tls: TLS | None = None
    replaces: bool = False
    shared: MappedParameters | None = None
    replica: MappedParameters | None = None
    chaos: str | None = None
