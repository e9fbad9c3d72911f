"""Queues: transfers of the simulated network that wait until their lines are free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .clock import VirtualClock
from .network import Network, Outages


@dataclass(slots=True, eq=False)
class Transfer:
    """A message from one node to another, from its sending to its arrival."""

    source: int
    to: int
    message: Any
    size: int
    """In bytes."""
    sent: int
    """In nanoseconds; so is `begun`."""
    here: int
    """The sender's host."""
    there: int
    """The receiver's."""
    link: Any
    begun: int = 0


class Queues:
    """What waits at each side of the lines, oldest first.

    A transfer begins as soon as every side that it needs is free and no outage separates its
    hosts. At a side that becomes free the oldest goes that can: one that waits for a busy receiver
    holds up nothing that its sender has for others. Between two hosts nothing overtakes.

    Args:
        begin: called with each transfer that waited, at the time when it can begin.
    """

    def __init__(
        self,
        network: Network,
        outages: Outages,
        clock: VirtualClock,
        begin: Callable[[Transfer], None],
    ) -> None:
        self._network = network
        self._outages = outages if outages else None
        self._clock = clock
        self._begin = begin
        # Dictionaries for their order: that in which the transfers came.
        self._waiting: dict[Transfer, None] = {}
        self._at: dict[int, dict[Transfer, None]] = {}
        """Those of one side."""
        self._wakes: set[tuple[int, int]] = set()
        """Which side to look at again, and when."""

    def __iter__(self) -> Iterator[Transfer]:
        return iter(self._waiting)

    def must_wait(self, transfer: Transfer) -> bool:
        """Whether a new transfer cannot begin now, or others of its sides come first."""
        here, there = transfer.here, transfer.there
        if self._waiting and any(self._at.get(side) for side in self._network.sides(here, there)):
            return True
        return self.ready_at(here, there) > self._clock.now

    def put(self, transfer: Transfer) -> None:
        """Let it wait; it begins at once if it can, and what waits already cannot."""
        sides = self._network.sides(transfer.here, transfer.there)
        self._waiting[transfer] = None
        for side in sides:
            self._at.setdefault(side, {})[transfer] = None
        for side in sides:
            self._start(side)

    def drop(self, source: int) -> list[Transfer]:
        """Take out what that node has not begun to send."""
        dropped = [transfer for transfer in self._waiting if transfer.source == source]
        for transfer in dropped:
            self._remove(transfer)
        return dropped

    def ready_at(self, here: int, there: int) -> int:
        """When a transfer between two hosts could begin, if nothing else did before."""
        begin = self._network.begin(here, there, self._clock.now)
        return self._outages.end(here, there, begin) if self._outages else begin

    def _start(self, side: int) -> None:
        """Begin what can begin at that side."""
        while (transfer := self._oldest_ready(side)) is not None:
            self._remove(transfer)
            self._begin(transfer)

    def _oldest_ready(self, side: int) -> Transfer | None:
        now, network = self._clock.now, self._network
        taken = set[int]()  # Busy sides: many may wait for the same one.
        for transfer in self._at.get(side, ()):
            sides = network.sides(transfer.here, transfer.there)
            if not taken.isdisjoint(sides):
                continue
            ready = self.ready_at(transfer.here, transfer.there)
            if ready <= now:
                return self._oldest_beside(transfer)
            busy = [other for other in sides if network.free_at(other) > now]
            for other in busy:
                self._look_again(other, network.free_at(other))
            taken.update(busy)
            if side in busy:
                break
            if not busy:  # An outage.
                self._look_again(side, ready)
        return None

    def _oldest_beside(self, transfer: Transfer) -> Transfer:
        """That transfer, or one that is older, ready too, and would be held up by it."""
        now = self._clock.now
        for side in self._network.sides(transfer.here, transfer.there):
            for older in self._at[side]:
                if older is transfer:
                    break
                if self.ready_at(older.here, older.there) <= now:
                    return self._oldest_beside(older)
        return transfer

    def _remove(self, transfer: Transfer) -> None:
        del self._waiting[transfer]
        for side in self._network.sides(transfer.here, transfer.there):
            del self._at[side][transfer]

    def _look_again(self, side: int, when: int) -> None:
        if (side, when) not in self._wakes:
            self._wakes.add((side, when))
            self._clock.at(when, self._wake, (side, when))

    def _wake(self, look: tuple[int, int]) -> None:
        self._wakes.discard(look)
        self._start(look[0])
