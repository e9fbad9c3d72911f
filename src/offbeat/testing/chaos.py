"""Chaos: a process of a real run that kills itself at a chosen await.

A kill that comes from outside falls where the clock puts it, mostly into a gradient. A `Saboteur`
is told of every await of the nodes on its host, so that it can be put at any of them: at the
40th `recv` of node 2, say. From outside that is the end of the process, by SIGKILL.

    OFFBEAT_CHAOS=2:recv:40 offbeat run --method ADPSGD --workers 4

`count_awaits` says how many there are of each kind, so that one can be drawn at random.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..collectives.algorithm import Chunk
from ..experiment import Experiment
from ..method import NextRound
from ..node import Node
from ..runtime.errors import RunError
from ..runtime.simulated import Simulation
from ..runtime.tasks import Task
from ..suspensions import GradientRequest, Meet, Receive, Sleep

VARIABLE = "OFFBEAT_CHAOS"
"""The environment variable that says where: rank, kind and number, as in `2:recv:40`."""


class Await(StrEnum):
    """What a role awaits."""

    GRADIENT = "gradient"
    RECV = "recv"
    SLEEP = "sleep"
    ROUND = "round"
    """Its next round: it has just begun, or has ended one."""
    COLLECTIVE = "collective"
    """A part of an all-reduce or a barrier."""
    TASK = "task"
    """What it has started beside itself."""


def kind_of(suspension: Any) -> Await | None:
    """What sort of await that is; None of what no node offers."""
    if isinstance(suspension, Receive):
        return Await.COLLECTIVE if suspension.message_type is Chunk else Await.RECV
    return _KINDS.get(type(suspension))


_KINDS: dict[type, Await] = {
    GradientRequest: Await.GRADIENT,
    Sleep: Await.SLEEP,
    NextRound: Await.ROUND,
    Meet: Await.COLLECTIVE,
    Task: Await.TASK,
}


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(kw_only=True, eq=False)
class Saboteur:
    """Kills the process at the `number`-th await of that kind, of all roles of node `rank`.

    Its `watch` is given to the `Host` of a process. The await has begun and nothing has answered
    it: what the role did before, sends among it, is done.

    Args:
        rank: of the node.
        number: 1 is the first.
        strike: what happens there; it ends this process if not given.
    """

    rank: int
    kind: Await
    number: int
    strike: Callable[[], None] = kill_self
    seen: int = 0

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"chaos: rank is {self.rank}; it must not be negative")
        if self.number < 1:
            raise ValueError(f"chaos: number is {self.number}; it must be at least 1")

    @classmethod
    def parse(cls, text: str) -> Saboteur:
        """Read `rank:kind:number`.

        Raises:
            ValueError: in one line, if it is anything else.
        """
        parts = text.split(":")
        kinds = [kind.value for kind in Await]
        if len(parts) != 3 or not (parts[0].isdecimal() and parts[2].isdecimal()):
            raise ValueError(f"{VARIABLE} is {text!r}; it must be rank:kind:number, as 2:recv:40")
        if parts[1] not in kinds:
            raise ValueError(
                f"{VARIABLE} is {text!r}: no await is a {parts[1]!r}; it must be one of "
                f"{', '.join(kinds)}"
            )
        return cls(rank=int(parts[0]), kind=Await(parts[1]), number=int(parts[2]))

    def __str__(self) -> str:
        return f"{self.rank}:{self.kind}:{self.number}"

    def watch(self, node: Node, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """The same coroutine, seen at every await if it runs on that node."""
        return Watched(coroutine, self._see) if node.rank == self.rank else coroutine

    def _see(self, suspension: Any) -> None:
        if kind_of(suspension) is self.kind:
            self.seen += 1
            if self.seen == self.number:
                self.strike()


class Watched(Coroutine[Any, Any, Any]):
    """A coroutine that shows what it awaits, before whoever steps it sees it."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], see: Callable[[Any], None]) -> None:
        self._coroutine = coroutine
        self._see = see

    def send(self, value: Any) -> Any:
        suspension = self._coroutine.send(value)
        self._see(suspension)
        return suspension

    def throw(self, *error: Any) -> Any:
        suspension = self._coroutine.throw(*error)
        self._see(suspension)
        return suspension

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()


class _Counting(Simulation):
    """A simulation that counts what is awaited."""

    def __init__(self, experiment: Experiment) -> None:
        self.awaits: dict[int, Counter[Await]] = {}
        super().__init__(experiment)

    def watched(self, node: Node, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        counts = self.awaits.setdefault(node.rank, Counter())

        def see(suspension: Any) -> None:
            if (kind := kind_of(suspension)) is not None:
                counts[kind] += 1

        return Watched(coroutine, see)


def count_awaits(experiment: Experiment) -> dict[int, Counter[Await]]:
    """How often each node awaits what in a run of that experiment, by simulating it.

    Raises:
        RunError: the simulated run fails.
    """
    simulation = _Counting(experiment)
    run = simulation.run()
    if run.error is not None:
        raise RunError(run.error)
    return simulation.awaits
