"""Assembly: the processes of a real run come, are checked, and find each other."""

from __future__ import annotations

import time
from collections.abc import Callable

from .checkpoint import Checkpoint
from .errors import RunError
from .placement import Placement
from .roster import Roster
from .seats import DEPARTED, TO_COME, Seat
from .tickets import Tickets
from .world import World, require_same_layout

START_TIMEOUT = 120.0
"""Seconds for all processes to build their model and find each other."""


def assemble(
    world: World,
    roster: Roster,
    placement: Placement,
    tickets: Tickets,
    resume: Checkpoint | None,
    patience: float,
) -> None:
    """Have all processes started, by other machines within `patience` seconds, and let them meet.

    Args:
        resume: the checkpoint from which their nodes go on.

    Raises:
        RunError: one does not come in time, fails, or has another model.
    """
    placement.begin(tickets)
    deadline = time.monotonic() + patience
    while placement.hosting.unplaced:
        _listen(roster)
        if time.monotonic() > deadline:
            raise RunError(placement.hosting.missing(patience))
    deadline = time.monotonic() + START_TIMEOUT
    _await(roster, lambda seat: bool(seat.addresses), deadline, "start")
    live = roster.live()
    for seat in live:
        assert seat.layout is not None
        require_same_layout(world.layout, seat.layout, live[0].names, seat.names)
    for seat in live:
        known = {} if resume is None else {rank: resume.node(rank) for rank in seat.ranks}
        placement.introduce(seat, known)
    _await(roster, lambda seat: seat.met, deadline, "find each other")


def _await(roster: Roster, done: Callable[[Seat], bool], deadline: float, what: str) -> None:
    while not all(done(seat) for seat in roster.live()):
        _listen(roster)
        if time.monotonic() > deadline:
            late = ", ".join(seat.names for seat in roster.live() if not done(seat))
            raise RunError(f"{late} did not {what} within {START_TIMEOUT:g} s")


def _listen(roster: Roster) -> None:
    roster.listen(0.1)
    for seat in roster.seats:
        departed_now = seat.gone not in (None, DEPARTED, TO_COME)
        if departed_now or seat.failed is not None:
            raise RunError(f"{seat.names} did not start: {seat.failed or seat.gone}")
