"""Control: what the coordinator of a run, its members and the agents on other machines say.

    member -> coordinator   Ready, Connected, Report, Snapshots, Captured, Restored, Want,
                            Failed, Traced, Done
    coordinator -> member   Meet, Start, Take, Pause, Capture, Proceed, Restore, Slow, Leave, Grant,
                            Stop, Finish, Close, Abort
    agent -> coordinator    Offer, Ended, Journal
    coordinator -> agent    Assigned, Refused, Kill, Over

Words are records, sent by `offbeat.encoding` over the connections that carry the messages of the
nodes too: whoever is heard has proved that it knows the run's secret.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from ..parameters import Layout
from ..trace import Trace
from .pace import Punctuality
from .status import Snapshot, Status

COORDINATOR = 0xFFFF_FFFF
"""Its number among the hosts of a run: the highest, so that everyone dials it."""
FIRST_AGENT = 0x8000_0000
"""Numbers from here on are agents'; those below are members'."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A snapshot, as it travels."""

    rank: int
    is_server: bool
    parameters: Tensor
    states: tuple[Any, ...]

    @classmethod
    def of(cls, snapshot: Snapshot) -> Held:
        return cls(
            rank=snapshot.rank,
            is_server=snapshot.is_server,
            parameters=snapshot.parameters,
            states=tuple(snapshot.states.values()),
        )

    def snapshot(self) -> Snapshot:
        states = {type(state): state for state in self.states}
        return Snapshot(self.rank, self.is_server, self.parameters, states)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """A trace, as it travels."""

    columns: dict[str, dict[str, NDArray[Any]]]
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, trace: Trace) -> Tables:
        return cls(columns=trace.columns(), kinds=tuple(trace.kinds))

    def trace(self) -> Trace:
        return Trace.of_columns(self.columns, self.kinds)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The model is built, and this is where others reach it."""

    addresses: tuple[str, ...]
    layout: Layout


@dataclass(frozen=True, kw_only=True)
class Connected:
    """It has found the others."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How it stands; also its sign of life."""

    status: Status


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """The answer to `Take`."""

    asked: int
    nodes: tuple[Held, ...]
    status: Status


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Why this member cannot go on, in one line."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What a member recorded that has failed."""

    trace: Tables


@dataclass(frozen=True, kw_only=True)
class Done:
    """All that a member brings home."""

    nodes: tuple[Held, ...]
    trace: Tables
    status: Status
    punctuality: dict[int, Punctuality]


@dataclass(frozen=True, kw_only=True)
class Captured:
    """The answer to `Capture`: of each node its state, as the bytes of a file; or why not."""

    asked: int
    nodes: dict[int, Tensor]  # (bytes,) uint8
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Restored:
    """The nodes are what `Restore` said, and wait for `Start`."""


@dataclass(frozen=True, kw_only=True)
class Want:
    """Tickets for so many gradients, in advance."""

    count: int


@dataclass(frozen=True, kw_only=True)
class Meet:
    """Where the others are.

    Args:
        addresses: by their number.
        machines: of each process of the run, by any number.
        nodes: states from which this member's nodes go on; they begin anew if not given.
        absent: nodes that have departed already.
        late: whether the others are there already, so that this member dials them all.
    """

    addresses: dict[int, str]
    machines: tuple[int, ...]
    nodes: dict[int, Tensor] = field(default_factory=dict[int, Tensor])  # (bytes,) uint8
    absent: tuple[int, ...] = ()
    late: bool = False


@dataclass(frozen=True, kw_only=True)
class Restore:
    """Give up what the nodes do, and make them anew; the arguments are those of `Meet`."""

    machines: tuple[int, ...]
    nodes: dict[int, Tensor] = field(default_factory=dict[int, Tensor])  # (bytes,) uint8
    absent: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Start:
    """Begin.

    Args:
        began: the run's time 0 on the coordinator's monotonic clock, in nanoseconds.
        boot: of the machine whose clock that is.
        elapsed: nanoseconds that the run has lasted already.
    """

    began: int
    boot: str
    elapsed: int


def boot() -> str:
    """What tells this machine, since it was started, from all others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


@dataclass(frozen=True, kw_only=True)
class Take:
    """Send copies of the nodes, under this number."""

    asked: int


@dataclass(frozen=True, kw_only=True)
class Grant:
    """Tickets for so many gradients; with `last` there will be no others."""

    count: int
    last: bool


@dataclass(frozen=True, kw_only=True)
class Slow:
    """From now on gradients take that many times as long."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Hold every worker before the first round from this one on, or from its own on, by rank."""

    order: int
    at_round: int | dict[int, int]


@dataclass(frozen=True, kw_only=True)
class Capture:
    """Send all that decides how the nodes go on, under this number."""

    asked: int


@dataclass(frozen=True, kw_only=True)
class Proceed:
    """Go on."""


@dataclass(frozen=True, kw_only=True)
class Leave:
    """Depart at the next round."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Compute no further gradient; go on to serve."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Send home what there is."""


@dataclass(frozen=True, kw_only=True)
class Close:
    """All have finished: connections may be closed."""


@dataclass(frozen=True, kw_only=True)
class Abort:
    """End at once."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """An agent would start so many processes; `experiment` is its own, in YAML form.

    `hosts` names the ones it must be given, where something else has numbered the processes.
    """

    slots: int
    experiment: dict[str, Any]
    versions: dict[str, str]
    hosts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """The numbers of the processes that the agent starts."""

    hosts: tuple[int, ...]
    journals: bool
    replaces: bool


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why an agent may not take part, in one line."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Kill that process."""

    host: int


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process of the agent's is over."""

    host: int
    how: str


@dataclass(frozen=True, kw_only=True)
class Journal:
    """A file of the agent's journal folder."""

    name: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Over:
    """The run is over."""

    stop: str
    error: str | None = None
    notes: list[str] = field(default_factory=list[str])
