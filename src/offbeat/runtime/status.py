"""What a host tells of itself and of its nodes while a run goes on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from ..node import Node

S = TypeVar("S")


@dataclass(eq=False)
class Snapshot:
    """A copy of what a node holds, for evaluation elsewhere."""

    rank: int
    is_server: bool
    parameters: Tensor
    states: dict[type, Any]

    @classmethod
    def of(cls, node: Node) -> Snapshot:
        states = copy.deepcopy(node.states)
        # To where it is evaluated the parameters go by way of the CPU.
        parameters = node.parameters.clone().cpu()
        return cls(node.rank, node.is_server, parameters, states)

    def state(self, state_type: type[S]) -> S:
        if state_type not in self.states:
            self.states[state_type] = state_type()
        return self.states[state_type]


@dataclass(kw_only=True)
class Status:
    """What a host says of itself while it runs."""

    idle: bool
    parked: bool
    """A worker awaits a gradient that the budget does not allow."""
    stuck: bool
    """A worker awaits anything else."""
    waiting: list[str]
    sent: dict[tuple[int, int], int]
    received: dict[tuple[int, int], int]
    rounds: dict[int, int]
    """Of each worker here, the round that it is in or about to begin."""
    pausing: int | None
    """The number of the order to hold workers between two rounds; None while all go on."""
    paused: set[int]
    """Workers that are held."""
    computed: int
    steps: int
    bytes_sent: int
    departed: set[int]
