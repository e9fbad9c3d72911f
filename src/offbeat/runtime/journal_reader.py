"""Journal reader: one node's journal, as a replay follows it."""

from __future__ import annotations

from .causes import Cause, Kind
from .journal import Entry, JournalError

INSIDE_A_STEP = {
    Kind.MESSAGE_NOW,
    Kind.LOST_NOW,
    Kind.CANCELLED_NOW,
    Kind.POLL,
    Kind.CLOCK,
    Kind.PARKED,
    Kind.PAUSED,
}
"""Kinds that a role meets without being suspended."""


class JournalEnds(JournalError):
    """The node was killed here, or the journal is of another run."""


class Reader:
    """One node's journal and how far it has been followed."""

    def __init__(self, rank: int, entries: list[Entry]) -> None:
        self.rank = rank
        self.entries = entries
        self.position = 0
        self.begun = False

    @property
    def head(self) -> Entry | None:
        return self.entries[self.position] if self.position < len(self.entries) else None

    def needs(self) -> list[Cause]:
        """The messages that must be here before the role can take its next step, whole."""
        causes: list[Cause] = []
        for position in range(self.position, len(self.entries)):
            cause = self.entries[position].cause
            first = position == self.position and self.begun
            if not first and cause.kind not in INSIDE_A_STEP:
                break
            if cause.kind is not Kind.DEPARTURE and cause.source >= 0 and cause.sequence >= 0:
                causes.append(cause)
        return causes

    def take(self, task: int | None, *kinds: Kind) -> Entry:
        """The next entry, which must be of one of these kinds."""
        entry = self.head
        if entry is None:
            raise JournalEnds(f"the journal of node {self.rank} ends in the middle of a step")
        if entry.cause.kind not in kinds or task not in (None, entry.task):
            wanted = " or ".join(kind.name.lower() for kind in kinds)
            found = entry.cause.kind.name.lower()
            raise JournalError(
                f"the replay departs from the journal of node {self.rank} at entry "
                f"{self.position}: the role's next step needs {wanted}, the journal has {found}; "
                "was it made by the same version, with the same experiment?"
            )
        self.position += 1
        return entry
