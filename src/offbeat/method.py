"""Method: an algorithm as one coroutine per role, written once for every runtime."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from .ledger import Ledger
from .node import Node
from .suspensions import Suspension
from .topology import Topology

S = TypeVar("S")


class Holder(Protocol):
    """What `Method.model` may ask: a node, or the copy of one that a real run sends home."""

    @property
    def rank(self) -> int: ...
    @property
    def is_server(self) -> bool: ...
    @property
    def parameters(self) -> Tensor: ...
    def state(self, state_type: type[S]) -> S: ...


class ModelLost(Exception):
    """What a method's parameters stand on is gone with the nodes that held it."""


class NextRound(Suspension[None]):
    """A role between two rounds: where a worker stops when the run does.

    A server, and whatever runs beside a worker, goes on to serve until all is quiet.
    """

    __slots__ = ("beside",)

    def __init__(self, *, beside: bool = False) -> None:
        self.beside = beside

    def __str__(self) -> str:
        return "the next round"


# A dataclass without fields: then the command line resolves the fields' types of every subclass.
@dataclass(frozen=True)
class Method(ABC):
    """Hyper-parameters, and what each role does. Subclasses are frozen dataclasses.

    One round of a worker is `step`. `background` names further coroutine methods, each of which
    runs on every worker beside `step`, round after round. The docstring names the paper, as
    `offbeat.citation` reads it.
    """

    family: ClassVar[str] = "user"
    background: ClassVar[tuple[str, ...]] = ()
    messages: ClassVar[tuple[type, ...]] = ()
    synchronous: ClassVar[bool] = False
    """Every worker makes the same number of steps; otherwise whoever is free takes the next."""
    survives_loss: ClassVar[bool] = False
    """The other workers go on when one departs, and late ones are let in."""
    chooses_samples: ClassVar[bool] = False
    """It says which samples a gradient is of, and so cannot run in a user's own loop."""
    unequal_rounds: ClassVar[bool] = False
    """A worker may need others that have made more rounds than itself; so it cannot run in a
    user's own loop, whose ranks make equally many and then meet."""
    shares_parameters: ClassVar[bool] = False
    """All workers change one vector in the memory of one machine, without locks; so it cannot run
    on several machines or in a user's own loop, is not replayed, and conserves nothing."""
    replicated: ClassVar[bool] = False
    """All workers hold the same parameters, which `node.apply_mean` alone changes, so that those of
    one machine may keep them once. A subclass with a `step` of its own has to declare it anew."""
    outer_steps: ClassVar[bool] = False
    """Between local steps it steps from a model of its own, and so cannot be inside a method that
    does so too."""
    serial: ClassVar[dict[str, Any] | None] = {}
    """The settings under which one worker without latency is serial SGD; None if there are none."""
    ledger: ClassVar[Ledger | None] = None
    """What the method conserves."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        first = next(base for base in cls.__mro__ if vars(base).keys() & {"step", "replicated"})
        if "replicated" not in vars(first):
            cls.replicated = False

    @abstractmethod
    async def step(self, node: Node) -> None:
        """One round of a worker."""

    def model(self, nodes: Sequence[Holder]) -> Tensor:
        """The parameters (d,) that the live nodes stand for: by default the workers' mean.

        Raises:
            ModelLost: the nodes that held them are gone.
        """
        if not nodes:
            raise ModelLost("no worker is left")
        return torch.stack([node.parameters for node in nodes]).mean(dim=0)

    def validate(self, workers: int) -> None:
        """Raise ValueError, in one line, if this method cannot run on that many workers.

        By default every topology among its settings has to connect them.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Topology):
                value.validate(workers)

    @property
    def server_count(self) -> int:
        return 0

    @property
    def colocate(self) -> bool:
        """Whether servers live on the workers' hosts instead of hosts of their own."""
        return False

    def staleness_bound(self, workers: int) -> int | None:
        """The most steps that a gradient which is applied may have missed; None if any number."""
        return 0 if self.synchronous else None

    def agreed(self, round: int) -> bool:
        """Whether all workers hold equal parameters at the end of that round."""
        return False

    async def settle(self, node: Node) -> None:
        """Take in what others have sent in rounds that are over, before all parameters are averaged
        (for methods that wrap this one). By default nothing is under way between two rounds."""

    def restart(self, node: Node, x: Tensor) -> None:
        """Go on from parameters that are common to all workers (for methods that wrap this one; not
        asked of one with `outer_steps`)."""
        node.load(x)

    def roles(self, node: Node) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs on that node, by name."""
        return {"worker": self._work(node)} | self.beside(node)

    def beside(self, node: Node) -> dict[str, Coroutine[Any, Any, None]]:
        """The background roles of a worker, by name."""
        return {name: self._repeat(node, name) for name in self.background}

    async def _work(self, node: Node) -> None:
        beginning = NextRound()
        while True:
            await beginning
            await self.step(node)
            node.round += 1

    async def _repeat(self, node: Node, name: str) -> None:
        coroutine_method = getattr(self, name)
        beginning = NextRound(beside=True)
        while True:
            await beginning
            await coroutine_method(node)


@dataclass(frozen=True, kw_only=True)
class ServerMethod(Method):
    """A method whose parameters live on servers.

    Args:
        servers: how many nodes share the parameters, cut at tensor boundaries.
        colocated: servers run on the workers' hosts, one each, instead of on hosts of their own.
    """

    servers: int = 1
    colocated: bool = False

    family: ClassVar[str] = "parameter server"
    survives_loss: ClassVar[bool] = True

    @abstractmethod
    async def serve(self, node: Node) -> None:
        """One round of a server."""

    def model(self, nodes: Sequence[Holder]) -> Tensor:
        """The servers' parts, in order."""
        held = sorted((n for n in nodes if n.is_server), key=lambda n: n.rank)
        if len(held) < self.servers:
            raise ModelLost(f"{self.servers - len(held)} of {self.servers} servers are gone")
        return torch.cat([self.part_of_model(node) for node in held])

    def part_of_model(self, server: Holder) -> Tensor:
        """What a server has of the model, (d,) of its shard: by default the parameters it holds."""
        return server.parameters

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.servers < 1:
            raise ValueError(f"servers is {self.servers}; a parameter server needs at least 1")
        if self.colocated and self.servers > workers:
            raise ValueError(
                f"{self.servers} servers cannot be colocated with {workers} workers, one each; "
                "lower servers or raise cluster.workers"
            )

    @property
    def server_count(self) -> int:
        return self.servers

    @property
    def colocate(self) -> bool:
        return self.colocated

    def roles(self, node: Node) -> dict[str, Coroutine[Any, Any, None]]:
        if node.is_server:
            return {"server": self._serve(node)}
        return super().roles(node)

    async def _serve(self, node: Node) -> None:
        beginning = NextRound(beside=True)
        while True:
            await beginning
            await self.serve(node)
            node.round += 1
