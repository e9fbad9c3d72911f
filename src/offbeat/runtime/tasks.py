"""Tasks: the coroutines of a node."""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from typing import Any

from ..node import Node
from ..suspensions import Suspension


class Task(Suspension[Any]):
    """A coroutine of one node: a role, or what a role has started."""

    __slots__ = (
        "coroutine",
        "fresh",
        "id",
        "is_role",
        "name",
        "node",
        "outcome",
        "waiting",
        "watchers",
    )

    def __init__(
        self, node: Node, name: str, coroutine: Coroutine[Any, Any, Any], id: int, is_role: bool
    ) -> None:
        self.is_role = is_role
        self.node = node
        self.name = name
        self.coroutine = coroutine
        self.id = id
        self.fresh = True
        """Since its round began it has read, sent and started nothing."""
        self.waiting: Any = None
        self.outcome: tuple[Any, BaseException | None] | None = None
        self.watchers: list[Task] = []

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a node's state that travels takes no running coroutine along.
        return (type(None), ())

    def __str__(self) -> str:
        return f"what it started as {self.name}"

    def close(self) -> None:
        # A role that catches everything, its own end too, says so with a RuntimeError.
        with contextlib.suppress(RuntimeError):
            self.coroutine.close()

    def describe(self) -> str:
        return f"node {self.node.rank} ({self.name}) awaits {self.waiting}"


@dataclass(frozen=True, eq=False)
class Finished(Suspension[Any]):
    """What is left of a task that has ended: to be awaited for its result, as the task was."""

    result: Any

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.result
        yield  # A generator that is over at once.
