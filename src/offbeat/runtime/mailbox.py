"""Mailbox: what has arrived at a node and no role has taken."""

from __future__ import annotations

from collections import deque
from typing import Any

from ..suspensions import Receive


class Mailbox:
    """Messages of one node that no role has taken yet, by type, in order of arrival."""

    __slots__ = ("by_type", "counts", "taken")

    def __init__(self) -> None:
        self.by_type: dict[type, deque[tuple[int, Any, int]]] = {}
        self.counts: dict[int, int] = {}
        """Messages that have arrived from each node."""
        self.taken = 0
        """Messages that roles have taken."""

    def count(self, source: int) -> int:
        """The number, from 0, of the message that has arrived from there."""
        number = self.counts.get(source, 0)
        self.counts[source] = number + 1
        return number

    def put(self, source: int, message: Any, number: int) -> None:
        queue = self.by_type.get(type(message))
        if queue is None:
            queue = self.by_type[type(message)] = deque()
        queue.append((source, message, number))

    def take(self, wanted: Receive[Any]) -> tuple[int, Any, int] | None:
        queue = self.by_type.get(wanted.message_type)
        if not queue:
            return None
        if wanted.source is None and wanted.tag is None:
            self.taken += 1
            return queue.popleft()
        for index, (source, message, _) in enumerate(queue):
            if wanted.accepts(source, message):
                self.taken += 1
                found = queue[index]
                del queue[index]
                return found
        return None

    def unread(self) -> list[tuple[int, Any]]:
        return [(source, message) for q in self.by_type.values() for source, message, _ in q]

    def discard(self, source: int) -> list[Any]:
        """Take out, and return, what is here from one sender."""
        found: list[Any] = []
        for message_type, queue in self.by_type.items():
            found += [message for sender, message, _ in queue if sender == source]
            self.by_type[message_type] = deque(entry for entry in queue if entry[0] != source)
        return found
