"""Evaluations: the model of a real run, judged from time to time by its coordinator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..method import ModelLost
from ..runs import Metrics
from . import control
from .checkpoint import Checkpoint
from .seats import Seat
from .status import Snapshot, Status
from .world import Progress, World


class Evaluations:
    """Asks for copies of all nodes when it is time, and measures them.

    Args:
        tell: sends a word to every live member.
    """

    def __init__(
        self, world: World, progress: Progress | None, tell: Callable[[Any], None]
    ) -> None:
        self.metrics: list[Metrics] = []
        self._before = (0, 0, 0)
        """Samples, steps and bytes that the members' own counts leave out."""
        self._world = world
        self._progress = progress
        self._tell = tell
        self._interval = world.experiment.evaluation_interval
        self._batch_size = world.problem.batch_size
        self._due = self._interval
        self._asked = 0
        self._answers: dict[int, tuple[list[Snapshot], Status]] = {}
        self._since: tuple[float, int] | None = None
        """When the copies were asked for, and the samples by then; None while nothing is asked."""

    @property
    def busy(self) -> bool:
        """Whether copies are under way."""
        return self._since is not None

    def begin_if_due(self, tickets: int, seconds: float) -> None:
        """Ask for copies if so many gradients having been allowed makes it time."""
        samples = tickets * self._batch_size
        if samples >= self._due and not self.busy:
            self._asked += 1
            self._answers.clear()
            self._since = (seconds, samples)
            self._tell(control.Take(asked=self._asked))

    def answered(self, host: int, word: control.Snapshots) -> None:
        if word.asked == self._asked:
            self._answers[host] = ([held.snapshot() for held in word.nodes], word.status)

    def measure_if_complete(self, live: Sequence[Seat]) -> None:
        """Once all live members' copies are here, measure them."""
        if self._since is None or any(seat.host not in self._answers for seat in live):
            return
        seconds, samples = self._since
        self._since = None
        self._due = samples + self._interval
        answers = [self._answers[seat.host] for seat in live]
        nodes = [node for some, _ in answers for node in some]
        self.measure(seconds, nodes, [status for _, status in answers])

    def measure(
        self, seconds: float, nodes: Sequence[Snapshot], statuses: Sequence[Status]
    ) -> None:
        """Add a row; none if what the model stands on is lost."""
        try:
            row = self._world.measure(nodes, seconds, *self.counts(statuses))
        except ModelLost:
            return
        self.metrics.append(row)
        if self._progress is not None:
            self._progress(row)

    def counts(self, statuses: Sequence[Status]) -> tuple[int, int, int]:
        """Samples, steps and bytes of the whole run, what departed members did included."""
        samples, steps, sent = self._before
        return (
            samples + sum(status.computed for status in statuses) * self._batch_size,
            steps + sum(status.steps for status in statuses),
            sent + sum(status.bytes_sent for status in statuses),
        )

    def departed(self, status: Status | None) -> None:
        """A member is gone; what it last reported still counts."""
        if status is not None:
            self._before = self.counts([status])

    def count_from(self, checkpoint: Checkpoint | None) -> None:
        """The members begin to count anew, from there or from the beginning."""
        if checkpoint is None:
            self._before = (0, 0, 0)
        else:
            self._before = (checkpoint.samples, checkpoint.steps, checkpoint.bytes)

    def go_back(self, checkpoint: Checkpoint | None) -> None:
        """Take up the rows from there, or from the beginning; what is asked is given up."""
        self.count_from(checkpoint)
        self.metrics[:] = self.metrics[:1] if checkpoint is None else checkpoint.metrics
        samples = 0 if checkpoint is None else checkpoint.tickets * self._batch_size
        self._due = (1 + samples // self._interval) * self._interval
        self._since = None
