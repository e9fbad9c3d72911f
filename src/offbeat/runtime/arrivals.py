"""Arrivals: processes that come while a run goes on, in place of lost ones or as late workers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..method import Method
from . import control
from .checkpoint import Checkpoint, CheckpointError, latest_checkpoint
from .errors import RunError
from .evaluations import Evaluations
from .keeping import Keeper
from .placement import Placement
from .reassembly import Reassembly, admit
from .roster import Roster
from .seats import Seat

MOST = 3
"""Lost processes that are replaced, without a checkpoint in between, before the run is hopeless."""


class Arrivals:
    """Who is on the way.

    Args:
        directory: where checkpoints are; None if there are none, and so nobody is replaced.
        present: where the run stands, with the nodes of these ranks.
        start: lets all live members begin.
        note: told what the user should know.
    """

    def __init__(
        self,
        roster: Roster,
        placement: Placement,
        keeper: Keeper,
        evaluations: Evaluations,
        method: Method,
        servers: Sequence[int],
        *,
        directory: Path | None,
        present: Callable[[Iterable[int]], Checkpoint],
        start: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self._roster = roster
        self._placement = placement
        self._keeper = keeper
        self._evaluations = evaluations
        self._method = method
        self._servers = servers
        self._directory = directory
        self._present = present
        self._start = start
        self._note = note
        self._joining: list[Seat] = []
        """Those who have been started to join, and are not let in yet."""
        self._reassembly: Reassembly | None = None
        self.replaced = 0
        """Since the last checkpoint."""

    @property
    def busy(self) -> bool:
        """Whether all are given states from which they go on."""
        return self._reassembly is not None

    def advance(self) -> None:
        """Do what is next.

        Raises:
            RunError: a new process that the run cannot do without does not come.
        """
        if self._reassembly is not None:
            if self._reassembly.advance():
                self._reassembly = None
            return
        for seat in [s for s in self._joining if s.failed or s.ended]:
            self._turn_away(seat, seat.failed or seat.ended or "")
        ready = [seat for seat in self._joining if seat.addresses]
        if ready and not self._keeper.busy and not self._evaluations.busy:

            def refused(why: str) -> None:
                for seat in ready:
                    self._turn_away(seat, why)

            self._keeper.begin(functools.partial(self._admit, ready), refused)

    # A lost process comes back, and all go back to the last checkpoint

    def can_replace(self, seat: Seat) -> bool:
        """Whether a process in that place is needed, and one can come with a checkpoint.

        Raises:
            RunError: too many have come already.
        """
        needed = not self._method.survives_loss or bool(set(seat.ranks) & set(self._servers))
        if self._directory is None or not needed:
            return False
        if self.replaced >= MOST:
            raise RunError(
                f"{seat.names} {seat.gone}: {MOST} processes have been replaced since the last "
                "checkpoint, and no more are"
            )
        return True

    def replace(self, seat: Seat) -> None:
        """Start a process in that place."""
        self.replaced += 1
        again = Seat(host=seat.host, ranks=seat.ranks, agent=seat.agent, arriving=True)
        self._roster.seats[seat.host] = again
        if self._reassembly is None:
            checkpoint = self._last_checkpoint()
            states = {} if checkpoint is None else {n: checkpoint.node(n) for n in checkpoint.nodes}
            since = 0.0 if checkpoint is None else checkpoint.seconds
            self._note(f"all went back to where they were at {since:.2f} s")
            self._evaluations.go_back(checkpoint)
            self._keeper.forget()
            tickets = 0 if checkpoint is None else checkpoint.tickets
            self._reassembly = self._reassemble(states, tickets)
        self._reassembly.add(again)
        self._placement.add(again)

    def _last_checkpoint(self) -> Checkpoint | None:
        assert self._directory is not None
        try:
            checkpoint, notes = latest_checkpoint(self._directory)
        except CheckpointError:
            return None
        for note in notes:
            self._note(note)
        return checkpoint

    # A worker comes late, and all go on from where they are

    def join(self, rank: int) -> None:
        """Let a worker in that was not there, or is not there any more, at the next round."""
        old = self._roster.seat_of(rank)
        if old.gone is None:
            return
        seat = Seat(host=old.host, ranks=old.ranks, agent=old.agent, arriving=True)
        self._roster.seats[seat.host] = seat
        self._joining.append(seat)
        self._placement.add(seat)

    def _turn_away(self, seat: Seat, why: str) -> None:
        self._joining.remove(seat)
        self._note(f"{seat.names} could not join: {why}")
        seat.arriving, seat.gone, seat.failed = False, "could not join", None
        self._roster.send(seat, control.Abort())

    def _admit(self, seats: Sequence[Seat], nodes: dict[int, bytes]) -> None:
        ranks = [rank for seat in seats for rank in seat.ranks]
        states = admit(self._method, nodes, ranks, self._servers)
        here = self._present(nodes)
        self._evaluations.count_from(here)
        self._keeper.forget()
        self._reassembly = self._reassemble(states, here.tickets)
        for seat in seats:
            self._joining.remove(seat)
            self._reassembly.add(seat)
            self._note(f"{seat.names} (worker) joined at {here.seconds:.2f} s")

    def _reassemble(self, states: Mapping[int, bytes], tickets: int) -> Reassembly:
        return Reassembly(self._roster, self._placement, self._start, states, tickets)
