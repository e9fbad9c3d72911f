"""Seats: the processes of a run as its coordinator sees them, and what they report together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..parameters import Layout
from ..trace import Trace
from . import control
from .checkpoint import Checkpoint
from .errors import RunError
from .pace import Punctuality
from .status import Snapshot, Status
from .world import World

DEPARTED = "departed before the checkpoint"
TO_COME = "is yet to come"


@dataclass(kw_only=True, eq=False)
class Seat:
    """One process of the run: what is known of it."""

    host: int
    ranks: list[int]
    agent: int | None = None
    """The agent that started it; None if this process did."""
    heard: float = field(default_factory=time.monotonic)
    """When it last gave a sign of life, on the monotonic clock."""
    addresses: tuple[str, ...] = ()
    layout: Layout | None = None
    met: bool = False
    """It is connected to the others."""
    status: Status | None = None
    snapshots: list[Snapshot] | None = None
    """What it brought home."""
    trace: Trace | None = None
    punctuality: dict[int, Punctuality] = field(default_factory=dict[int, Punctuality])
    failed: str | None = None
    """Why it cannot go on, in its own words."""
    unplugged: float | None = None
    """When its connection ended."""
    ended: str | None = None
    """How its process ended, as far as that is known here."""
    arriving: bool = False
    """It has been started while the run goes on, and does not take part yet."""
    restored: bool = False
    """It has taken over the states that it was given last."""
    gone: str | None = None
    """Why it takes no part any more."""

    @property
    def names(self) -> str:
        return "node " + " and ".join(map(str, self.ranks))

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be heard of it."""
        return self.unplugged is not None or (self.ended is not None and not self.addresses)

    def learn(self, word: Any) -> None:
        """Take in what a word of the process says about the process itself."""
        match word:
            case control.Ready():
                self.addresses, self.layout = word.addresses, word.layout
            case control.Connected():
                self.met = True
            case control.Restored():
                self.restored = True
            case control.Report() | control.Snapshots():
                # If it is lost now, no row may count less of it than the one that these made.
                self.status = word.status
            case control.Failed():
                self.failed = word.text
            case control.Traced():
                self.trace = word.trace.trace()
            case control.Done():
                self.snapshots = [held.snapshot() for held in word.nodes]
                self.trace, self.status = word.trace.trace(), word.status
                self.punctuality = word.punctuality
            case _:
                pass


def seats_of(world: World, resume: Checkpoint | None) -> list[Seat]:
    """The seats of all processes, by number, those who are not there among them."""
    begins_absent = world.experiment.cluster.begins_absent
    seats = [
        Seat(host=host, ranks=[rank for rank, at in enumerate(world.hosts) if at == host])
        for host in range(world.host_count())
    ]
    for seat in seats:
        if resume is not None and set(seat.ranks) & set(resume.nodes):
            continue  # It was there, from the beginning or since it joined.
        if any(begins_absent(rank) for rank in seat.ranks):
            seat.gone = TO_COME
        elif resume is not None:
            seat.gone = DEPARTED
    return seats


def quiet(live: Sequence[Seat], absent: set[int]) -> bool:
    """Nobody computes, and every message sent has been received; `absent` nodes have departed."""
    statuses = [seat.status for seat in live]
    if any(status is None or not status.idle for status in statuses):
        return False
    alive = {rank for seat in live for rank in seat.ranks}
    sent: dict[tuple[int, int], int] = {}
    received: dict[tuple[int, int], int] = {}
    for status in statuses:
        assert status is not None
        if not absent <= status.departed:
            return False
        sent |= status.sent
        received |= status.received
    pairs = {pair for pair in sent | received if set(pair) <= alive}
    return all(sent.get(pair, 0) == received.get(pair, 0) for pair in pairs)


def waits(seats: Iterable[Seat]) -> str:
    """What everyone waits for, and since when nothing was heard of it."""
    now = time.monotonic()
    return "; ".join(
        f"{wait}, last heartbeat {now - seat.heard:.1f} s ago"
        for seat in seats
        for wait in (seat.status.waiting if seat.status else [])
    )


def require_heartbeats(live: Sequence[Seat], patience: float) -> None:
    """Every member has said something in so many seconds, or has brought its results home.

    Raises:
        RunError: naming one that has not, and what the others wait for.
    """
    now = time.monotonic()
    for seat in live:
        if seat.snapshots is None and now - seat.heard > patience:
            others = waits(other for other in live if other is not seat)
            raise RunError(
                f"{seat.names} has given no sign of life for {now - seat.heard:.0f} s; "
                f"the others: {others or 'none'}"
            )


def latenesses(seats: Iterable[Seat]) -> list[str]:
    """Whose gradients could not keep to the times that were to be injected."""
    return [
        f"worker {rank}: {kept.late:,} of {kept.gradients:,} gradients took longer than injected"
        for seat in seats
        for rank, kept in sorted(seat.punctuality.items())
        if kept.late
    ]
