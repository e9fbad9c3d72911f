"""Keeping: the coordinator's part in a checkpoint: pause, capture, write, proceed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..encoding import EncodingError
from ..method import Method
from . import control
from .capture import CaptureError
from .checkpoint import CheckpointError, next_pause
from .seats import Seat

MOST_ORDERS = 100
"""Pauses, each at later rounds, after which those who still wait count as waiting for good."""


class Keeper:
    """Holds a run from time to time, and has every node captured.

    Args:
        every: seconds between checkpoints; None if there are to be none.
        tell: sends a word to every live member.
        complete: makes the nodes' states, by rank, such that each can go on by itself.
        write: is given those, and writes the checkpoint.
        note: is told why there is none.
    """

    def __init__(
        self,
        *,
        every: float | None,
        method: Method,
        tell: Callable[[Any], None],
        complete: Callable[[dict[int, bytes]], dict[int, bytes]] = dict,
        write: Callable[[dict[int, bytes]], object],
        note: Callable[[str], None],
    ) -> None:
        self._every = every
        self._method = method
        self._tell, self._complete, self._write, self._note = tell, complete, write, note
        self._due = every or 0.0
        self._use, self._refused = self._keep, self._refuse
        self._round: int | dict[int, int] | None = None
        """What workers are to be held before: a round, or each worker's; None while all go on."""
        self._order = self._begun = 0
        """The number of the last order to pause, and of the first since it was begun to hold them.

        Rounds do not tell a report of this pause from one of an earlier pause."""
        self._asked = 0
        self._captured: dict[int, dict[int, Tensor]] | None = None
        """What has come, by host, since all were asked; None before that."""

    @property
    def busy(self) -> bool:
        """Whether the run is held, or about to be."""
        return self._round is not None

    def begin_if_due(self, seconds: float) -> None:
        """Hold the run if it is time, `seconds` since it began."""
        if self._every is not None and not self.busy and seconds >= self._due:
            self.begin()
            self._due = seconds + self._every

    def begin(
        self,
        use: Callable[[dict[int, bytes]], None] | None = None,
        refused: Callable[[str], None] | None = None,
    ) -> None:
        """Hold the run.

        Args:
            use: given the states in place of writing them; it lets the run go on.
            refused: told why there are none, in place of a note.
        """
        self._use, self._refused = use or self._keep, refused or self._refuse
        self._begun = self._order + 1
        self._pause(0)

    def all_quiet(self, live: Sequence[Seat]) -> None:
        """Nobody computes and all messages have arrived: ask for the states, or go on a little."""
        if self._captured is not None:
            return
        statuses = [seat.status for seat in live if seat.status is not None]
        if any(status.pausing != self._order for status in statuses):
            return  # What they last said is older than the order.
        later = next_pause(statuses, self._method)
        if later is None:
            self._captured = {}
            self._asked += 1
            self._tell(control.Capture(asked=self._asked))
        elif later != self._round and self._order - self._begun + 1 < MOST_ORDERS:
            self._pause(later)
        else:
            self._refused("some worker is in the middle of a round for good")
            self.cancel()

    def _pause(self, at_round: int | dict[int, int]) -> None:
        self._round = at_round
        self._order += 1
        self._tell(control.Pause(order=self._order, at_round=at_round))

    def captured(self, host: int, word: control.Captured) -> None:
        """A member's states have come."""
        if self._captured is None or word.asked != self._asked:
            return
        if word.refusal is not None:
            self._refused(word.refusal)
            self.cancel()
        else:
            self._captured[host] = word.nodes

    def use_if_complete(self, live: Sequence[Seat]) -> None:
        """Once all live members' states are here, make use of them."""
        if self._captured is None or any(seat.host not in self._captured for seat in live):
            return
        nodes = {
            rank: state.numpy().tobytes()
            for states in self._captured.values()
            for rank, state in sorted(states.items())
        }
        try:
            whole = self._complete(nodes)
        except (CaptureError, EncodingError) as error:
            self._refused(str(error))
            self.cancel()
            return
        self._use(whole)

    def _keep(self, nodes: dict[int, bytes]) -> None:
        try:
            self._write(nodes)
        except CheckpointError as error:
            self._note(str(error))
        self.cancel()

    def _refuse(self, why: str) -> None:
        self._note(f"no checkpoint: {why}")

    def forget(self) -> None:
        """All go on from states that they were given, and are not held any more."""
        self._round = self._captured = None

    def cancel(self) -> None:
        """Let the run go on."""
        self._round = self._captured = None
        self._tell(control.Proceed())
