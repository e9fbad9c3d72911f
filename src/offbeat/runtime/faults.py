"""Faults: those of a cluster's plan, brought about in a real run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..cluster import Cluster, Fault
from ..cluster.faults import comings_and_goings
from . import control
from .checkpoint import Checkpoint
from .placement import Placement
from .roster import Roster


class Faults:
    """What is still to come of the plan: a crash is SIGKILL, a slow worker waits.

    Args:
        join: lets the worker of that rank in.
    """

    def __init__(
        self,
        plan: Iterable[Fault],
        roster: Roster,
        placement: Placement,
        join: Callable[[int], None],
    ) -> None:
        self._plan = sorted(plan, key=lambda fault: fault.at)
        self._recoveries: list[tuple[float, int]] = []
        """When a worker is to be as fast as before, and its rank."""
        self._roster = roster
        self._placement = placement
        self._join = join

    def bring(self, seconds: float, *, ending: bool) -> None:
        """Bring about what is due, `seconds` since the run began; nobody joins an ending one."""
        while self._plan and self._plan[0].at <= seconds:
            self._befall(self._plan.pop(0), ending=ending)
        for until, rank in list(self._recoveries):
            if until <= seconds:
                self._recoveries.remove((until, rank))
                self._roster.send(self._roster.seat_of(rank), control.Slow(factor=1.0))

    def _befall(self, fault: Fault, *, ending: bool) -> None:
        seat = self._roster.seat_of(fault.rank)
        if fault.kind == "join":
            if not ending:
                self._join(fault.rank)
        elif seat.gone is not None:
            return
        elif fault.kind == "crash":
            self._placement.kill(seat)
        elif fault.kind == "leave":
            self._roster.send(seat, control.Leave())
        else:
            self._roster.send(seat, control.Slow(factor=fault.factor))
            self._recoveries.append((fault.until, fault.rank))


def still_to_come(cluster: Cluster, resume: Checkpoint | None) -> list[Fault]:
    """The faults of the plan that a run has before it, from the beginning or from a checkpoint.

    A join is, too, whose time had come but whose worker had not.
    """
    if resume is None:
        return list(cluster.faults)
    plan = [fault for fault in cluster.faults if fault.at > resume.seconds]
    for rank in range(cluster.workers):
        past = [f for f in comings_and_goings(cluster.faults, rank) if f.at <= resume.seconds]
        if past and past[-1].kind == "join" and rank not in resume.nodes:
            plan.append(past[-1])
    return plan
