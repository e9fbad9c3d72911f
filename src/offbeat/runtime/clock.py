"""Virtual time: a queue of events in integer nanoseconds."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

SECOND = 1_000_000_000
AFTER_ALL = 2.0
"""Above every random tie-break."""


def nanoseconds(seconds: float) -> int:
    return round(seconds * SECOND)


class VirtualClock:
    """Events at the same instant happen in a random order that the seed decides."""

    def __init__(self, seed: int) -> None:
        self.now = 0
        self._heap: list[tuple[int, float, int, Callable[[Any], None], Any]] = []
        self._counter = 0
        self._tie_break = random.Random(f"{seed}/ties").random

    def at(self, when: int, action: Callable[[Any], None], argument: Any) -> None:
        """Call `action(argument)` at `when` (ns, not before now)."""
        self._counter += 1
        heapq.heappush(self._heap, (when, self._tie_break(), self._counter, action, argument))

    def at_end_of(self, when: int, action: Callable[[Any], None], argument: Any) -> None:
        """The same, after everything else that happens at that instant."""
        self._counter += 1
        heapq.heappush(self._heap, (when, AFTER_ALL, self._counter, action, argument))

    @property
    def idle(self) -> bool:
        """Whether nothing is to happen any more."""
        return not self._heap

    def advance(self) -> bool:
        """Carry out the next event; False if none is left."""
        if not self._heap:
            return False
        self.now, _, _, action, argument = heapq.heappop(self._heap)
        action(argument)
        return True
