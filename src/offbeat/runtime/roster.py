"""Roster: who takes part in a real run, and the words between them and its coordinator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from .control import FIRST_AGENT
from .placement import Placement
from .seats import Seat, quiet

REASON = 2.0
"""Seconds to wait for the reason why a connection ended."""
PAUSE_SECONDS = 1.0
"""After so many in which nobody listened here, silence before is nobody's fault."""


class Roster:
    """The processes of one run.

    Args:
        seats: of all processes, by number; entries are replaced by those who come in their place.
        placement: what started them, and where they are heard.
        hear: who else is told what a process says, by the type of its word.
        on_departure: told that nothing more is to be heard of a process, who is to mark its seat.
    """

    def __init__(
        self,
        seats: list[Seat],
        placement: Placement,
        hear: Mapping[type, Callable[[Seat, Any], None]],
        on_departure: Callable[[Seat], None],
    ) -> None:
        self.seats = seats
        self._placement = placement
        self._hear = hear
        self._on_departure = on_departure
        self._listened = time.monotonic()

    def seat_of(self, rank: int) -> Seat:
        """The one that carries this node."""
        return next(seat for seat in self.seats if rank in seat.ranks)

    def live(self) -> list[Seat]:
        """The members that take part."""
        return [seat for seat in self.seats if seat.gone is None and not seat.arriving]

    def is_quiet(self) -> bool:
        """Nobody computes, and every message sent has been received."""
        absent = {rank for seat in self.seats if seat.gone for rank in seat.ranks}
        return quiet(self.live(), absent)

    def tell(self, word: Any) -> None:
        """Say something to every live member."""
        for seat in self.live():
            self.send(seat, word)

    def send(self, seat: Seat, word: Any) -> None:
        self._placement.line.send(seat.host, word)

    def listen(self, timeout: float) -> None:
        """Hear what has come, waiting for something at most that many seconds.

        This process may have been stopped, or its machine asleep: what others have said meanwhile
        is not all here at once.
        """
        for host, word in self._placement.line.hear(timeout):
            self._heed(host, word)
        for host, how in self._placement.spawner.ended().items():
            self.seats[host].ended = how
        now = time.monotonic()
        pause, self._listened = now - self._listened - timeout, now
        for seat in self.seats:
            if pause > PAUSE_SECONDS:
                seat.heard = min(now, seat.heard + pause)
            if seat.is_over and seat.gone is None and not seat.arriving:
                since = now - (seat.unplugged or now)
                if seat.ended is not None or since > REASON:
                    self._on_departure(seat)

    def _heed(self, host: int, word: Any) -> None:
        if host >= FIRST_AGENT:
            for number, how in self._placement.hosting.heed(host, word):
                self.seats[number].ended = how
            return
        seat = self.seats[host]
        if word is None:
            seat.unplugged = time.monotonic()
            return
        seat.heard = time.monotonic()
        seat.learn(word)
        if type(word) in self._hear:
            self._hear[type(word)](seat, word)
