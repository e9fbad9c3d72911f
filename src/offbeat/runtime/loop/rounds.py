"""Rounds: how a worker that already awaits its gradient is captured as it was when its round began.

Between two steps of the user's loop a worker is inside a round: it has asked for a gradient, and
may have sent things before, as D-PSGD does. Begun anew it will send them again. So they are left
out of what their receivers, who have not read them yet, are captured with.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Mapping
from typing import NamedTuple

from ..errors import RunError
from ..mailbox import Mailbox
from ..scheduler import Scheduler
from ..tasks import Task

Sent = Mapping[tuple[int, int], int]
"""Messages so far, from one node to another."""


class Moment(NamedTuple):
    """A worker at one point of a round."""

    sent: dict[tuple[int, int], int]
    """Messages so far, from one node to another."""
    done: tuple[int, int, int]
    """Counts of what cannot be left out: messages read, mixings, coroutines started."""

    @classmethod
    def of(cls, scheduler: Scheduler, task: Task, sent: Sent) -> Moment:
        node = task.node
        read = scheduler.mailboxes[node.rank].taken
        return cls(dict(sent), (read, node._mixes, scheduler._next_id[node.rank]))


class Round:
    """A worker's present round, as far as its request for a gradient."""

    def __init__(self, scheduler: Scheduler, task: Task, sent: Sent) -> None:
        self.node = task.node
        self.node.rng.keep()
        self.began = Moment.of(scheduler, task, sent)
        self.asked: Moment | None = None

    def sent_before_asking(self) -> dict[int, range]:
        """The numbers of the messages to each node that it sent before it asked for a gradient.

        Raises:
            RunError: it did more than that, which cannot be left out.
        """
        if self.asked is None or self.asked.done != self.began.done:
            raise RunError(
                "this method cannot be saved inside a loop: in a round, it reads messages or "
                "changes its parameters before it asks for a gradient"
            )
        began = self.began.sent
        return {
            pair[1]: range(began.get(pair, 0), count)
            for pair, count in self.asked.sent.items()
            if pair[0] == self.node.rank
        }


@contextlib.contextmanager
def rewound(
    scheduler: Scheduler, rank: int, own: Round | None, sent: Mapping[int, Mapping[int, range]]
) -> Generator[None]:
    """A node as when its round began, for a moment in which nothing runs.

    Args:
        own: its present round, if it is a worker.
        sent: by worker and receiver, the numbers of the messages that are left out.

    Raises:
        RunError: such a message has been read already.
    """
    mailbox, earlier = scheduler.mailboxes[rank], Mailbox()
    earlier.counts = dict(mailbox.counts)
    left_out = {source: to[rank] for source, to in sent.items() if rank in to}
    for kind, queue in mailbox.by_type.items():
        earlier.by_type[kind] = deque(m for m in queue if m[2] not in left_out.get(m[0], ()))
    found = len(mailbox.unread()) - len(earlier.unread())
    if found != sum(len(numbers) for numbers in left_out.values()):
        raise RunError(
            f"this method cannot be saved inside a loop: node {rank} has read what others sent "
            "before they asked for a gradient"
        )
    scheduler.mailboxes[rank] = earlier
    try:
        if own is None:
            yield
        else:
            with _beginning(own, next(t for t in scheduler.tasks[rank] if t.id == 0)):
                yield
    finally:
        scheduler.mailboxes[rank] = mailbox


@contextlib.contextmanager
def _beginning(own: Round, worker: Task) -> Generator[None]:
    rng, fresh = own.node.rng, worker.fresh
    random = rng.getstate()
    rng.setstate(rng.kept)
    worker.fresh = True
    try:
        yield
    finally:
        rng.setstate(random)
        worker.fresh = fresh


def renumber(mailbox: Mailbox, rank: int, received: Sent) -> None:
    """Number what a node was saved with as if it had come by the connections of this job."""
    ahead = {source: received.get((source, rank), 0) for source in mailbox.counts}
    for kind, queue in mailbox.by_type.items():
        mailbox.by_type[kind] = deque(
            (source, message, number + ahead[source] - mailbox.counts[source])
            for source, message, number in queue
        )
    mailbox.counts = {source: count for (source, to), count in received.items() if to == rank}
