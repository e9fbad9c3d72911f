"""Node: the handle that a role receives, and all that it knows of the world."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import torch
from torch import Tensor

from .draws import Draws
from .parameters import Dense, Layout
from .schedule import Schedule
from .stepping import OptimizerFactory, OuterOptimizer, ParameterOptimizer
from .suspensions import Gradient, GradientRequest, Group, Receive, Sleep, Started
from .topology import Neighbors, Topology, neighbors

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from .runtime.capture import OuterState

M = TypeVar("M")
S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of the parameters that one server holds."""

    index: int
    server: int
    span: slice


class Runtime(Protocol):
    """What a node asks of the runtime that carries it."""

    def now(self, node: Node) -> float: ...
    def send(self, node: Node, to: int, message: Any) -> None: ...
    def poll(self, node: Node, wanted: Receive[Any]) -> tuple[int, Any] | None: ...
    def start(self, node: Node, name: str, coroutine: Coroutine[Any, Any, R]) -> Started[R]: ...
    def all_reduce(
        self, node: Node, values: Dense, group: Group, tag: tuple[int, int]
    ) -> Awaitable[Tensor]: ...
    def apply_mean(
        self, node: Node, gradient: Gradient, group: Group, tag: tuple[int, int]
    ) -> Awaitable[None]: ...
    def buffer(
        self, like: Tensor, size: int | None = None, at: int = 0, given: bool = False
    ) -> Tensor: ...
    def is_ready(self, x: Tensor) -> bool: ...
    def is_given(self, received: Tensor) -> bool: ...
    def join(self, pieces: Sequence[Tensor], read_only: bool = False) -> Tensor: ...
    def stepped(self, node: Node, staleness: int, mixes: int) -> None: ...


class SharedParameters(Protocol):
    """One vector that all workers of a machine change in place, without locks."""

    @property
    def vector(self) -> Tensor:
        """(d,)"""
        ...

    @property
    def version(self) -> int:
        """Optimizer steps that all workers together have made on it."""
        ...

    def count(self, rank: int) -> None:
        """That worker has made a step."""
        ...


@dataclass(kw_only=True, eq=False)
class Node:
    """One participant: a worker or a server.

    Methods read `parameters`; only `load`, `mix`, `apply` and `apply_mean` change it.
    """

    rank: int
    workers: range
    servers: range
    parameters: Tensor
    """(d,); on a server, its shard."""
    layout: Layout
    """Names and shapes of `parameters`."""
    runtime: Runtime
    optimizer_factory: OptimizerFactory
    schedule: Schedule
    batch_size: int
    seed: int
    shards: tuple[Shard, ...] = ()
    """The servers and what part of the parameters each holds; empty without servers."""
    minibatches: Callable[[int], Tensor] | None = None
    """Gives `minibatch`; None where the samples are the user's own loop's."""
    shared: SharedParameters | None = None
    """Where `parameters` lie if all workers share them."""
    replicated: bool = False
    """Whether all workers hold the same parameters, which `apply_mean` alone changes."""
    part: slice | None = None
    """What of its parameters this worker steps, where those of one machine keep them once."""
    survives_loss: bool = True
    """Whether the method goes on without those who have departed; if not, `peers` keeps them."""

    round: int = 0
    """Rounds of `step` or `serve` that this node has completed."""

    def __post_init__(self) -> None:
        self.rng = Draws(f"{self.seed}/{self.rank}")
        """This node's own random numbers, the same in every runtime."""
        self.versions = [0] * (1 if self.is_server else max(1, len(self.shards)))
        self.requests = 0
        self.samples = 0
        self.changes = 0
        self.departed: set[int] = set()
        self.first_round: dict[int, int] = {}
        self.rounds_of: dict[int, int] = {}
        """Of peers that have left: the rounds that they took part in, whenever that is learnt."""
        self.states: dict[type, Any] = {}
        self.in_step = False
        """Whether it is in the midst of `apply_mean`."""
        self._mixes = 0
        self._mixes_at_snapshot = 0
        self._outer: dict[str, OuterOptimizer] = {}
        self.saved_outer: dict[str, OuterState] = {}
        """Of a restored node: of those that the method has not asked for again."""
        self._collectives: dict[tuple[Group, int | None], int] = {}
        self._optimizer: ParameterOptimizer | None = None
        # A server's step, or one on shared parameters, uses one worker's minibatch; another
        # worker's step stands for one of each.
        peers = 1 if self.is_server or self.shared is not None else len(self.workers)
        self._samples_per_gradient = self.batch_size * peers

    # Who and where

    @property
    def size(self) -> int:
        """Number of nodes: workers and servers."""
        return len(self.workers) + len(self.servers)

    @property
    def is_server(self) -> bool:
        return self.rank in self.servers

    @property
    def server(self) -> int:
        """The only server's rank."""
        if len(self.servers) != 1:
            raise ValueError(f"there are {len(self.servers)} servers, not one; use node.shards")
        return self.servers[0]

    @property
    def now(self) -> float:
        """Seconds since the run began, in virtual or wall time."""
        return self.runtime.now(self)

    @property
    def version(self) -> int:
        """Optimizer steps that `parameters` have had; the oldest shard's on a worker of several."""
        if self.shared is not None:
            self._recount(self.shared)
        return min(self.versions)

    def is_live(self, rank: int, round: int | None = None) -> bool:
        """Whether that node takes part in that round, by default this, as far as is known here."""
        round = self.round if round is None else round
        if rank in self.departed:
            return round < self.rounds_of.get(rank, 0)
        return self.first_round.get(rank, 0) <= round

    def peers(self, topology: Topology) -> Neighbors:
        """Neighbours in this round and the weights they are given (they sum to one).

        Only live ones, if the method survives a loss; else who awaits a departed one says so.
        """
        changed = self.survives_loss and (self.departed or self.first_round)
        live = self.is_live if changed else None
        return neighbors(topology, len(self.workers), self.rank, self.round, live)

    # State

    def state(self, state_type: type[S]) -> S:
        """This node's own durable state of that type, made by `state_type()` at the first call."""
        try:
            return self.states[state_type]
        except KeyError:
            return self.states.setdefault(state_type, state_type())

    def outer(
        self, name: str, start: Tensor, factory: Callable[..., Optimizer], **settings: Any
    ) -> OuterOptimizer:
        """A further optimizer, on a vector that begins as `start`, made at the first call.

        `factory` is a `torch.optim` class and `settings` are its arguments.
        """
        if name not in self._outer:
            self._outer[name] = OuterOptimizer(
                start, lambda named: factory([p for _, p in named], **settings)
            )
            saved = self.saved_outer.pop(name, None)
            if saved is not None:
                saved.restore(self._outer[name])
        return self._outer[name]

    @property
    def optimizer(self) -> ParameterOptimizer:
        """The inner optimizer: `lr` and `reset()` are for methods to use."""
        if self._optimizer is None:
            self.take_optimizer(self.make_optimizer())
        assert self._optimizer is not None
        return self._optimizer

    def make_optimizer(self) -> ParameterOptimizer:
        """An inner optimizer that has made no step yet, on all of the parameters."""
        optimizer = ParameterOptimizer(self.parameters, self.layout, self.optimizer_factory)
        optimizer.scale(self.schedule.factor(self.samples))
        return optimizer

    def take_optimizer(self, optimizer: ParameterOptimizer) -> None:
        """Step with that one from now on; of `part` only, where there is one."""
        if self.part is not None:
            optimizer.keep(self.part)
        self._optimizer = optimizer

    def scaled(self, factor: float) -> Tensor:
        """factor * x, a new vector (d,); large ones lie where they are sent from without a copy."""
        return torch.mul(self.parameters, factor, out=self.runtime.buffer(self.parameters))

    # Changing the parameters

    def load(
        self, x: Tensor, version: int | None = None, part: Shard | slice | None = None
    ) -> None:
        """Replace the parameters, or a part of them, by `x`, which has had `version` steps."""
        if self.replicated:
            self._refuse_own("load")
        self.changes += 1
        if part is None:
            self.parameters.copy_(x)
        else:
            self.parameters[part.span if isinstance(part, Shard) else part].copy_(x)
        if version is not None:
            self.versions[part.index if isinstance(part, Shard) else 0] = version

    def mix(
        self, *, scale: float = 1.0, add: Tensor | None = None, part: Shard | slice | None = None
    ) -> None:
        """x, or a part of it, <- scale * x + add: an averaging with others, no optimizer step."""
        if self.replicated:
            self._refuse_own("mix")
        x = self.parameters
        if part is not None:
            x = x[part.span if isinstance(part, Shard) else part]
        if add is not None:
            # One pass: x is large, and read and written at the speed of memory.
            torch.add(add, x, alpha=scale, out=x)
        elif scale != 1.0:
            x.mul_(scale)
        self.changes += 1
        self._mixes += 1

    def apply(
        self,
        gradient: Gradient | Tensor,
        taken_at: int | Sequence[int] | None = None,
        lr_scale: float = 1.0,
    ) -> None:
        """One step of the inner optimizer along a gradient of this node's, or a vector (d,).

        Of a vector `taken_at` is the version that it was taken at; of a mean of several
        gradients, the version of each.

        Raises:
            TypeError: a vector without `taken_at`.
        """
        if self.replicated:
            self._refuse_own("apply")
        if isinstance(gradient, Gradient):
            taken_at = gradient.versions[0] if taken_at is None else taken_at
            values = gradient.dense
        else:
            values = gradient
        if taken_at is None:
            raise TypeError("node.apply(vector) needs taken_at: the version of the gradient")
        self._step(values, (taken_at,) if isinstance(taken_at, int) else tuple(taken_at), lr_scale)

    async def apply_mean(self, gradient: Gradient) -> None:
        """One step of the inner optimizer along the mean of all workers' gradients.

        The bits are those of `apply(await all_reduce(gradient), taken_at=gradient.version)`. Where
        the workers of a method that is `replicated` are on one machine, they may keep the
        parameters once, and each step a part of them: until this is over they are not to be read.

        Raises:
            PeerLost: a worker has departed.
        """
        tag = self._next_tag(self.workers, None)
        self.in_step = True
        try:
            await self.runtime.apply_mean(self, gradient, self.workers, tag)
        finally:
            self.in_step = False

    def _step(self, values: Dense, contributions: Sequence[int], lr_scale: float = 1.0) -> None:
        """A step along what was taken at these versions; of `part` only, where there is one."""
        if self.shared is not None:
            self._recount(self.shared)
        self.changes += 1
        mixes = self._mixes - self._mixes_at_snapshot
        for version in contributions:
            self.runtime.stepped(self, self.versions[0] - version, mixes)
        optimizer = self._optimizer or self.optimizer
        optimizer.step(values, self.schedule.factor(self.samples) * lr_scale)
        self.versions[0] += 1
        self.samples += self._samples_per_gradient * len(contributions)
        if self.shared is not None:
            self.shared.count(self.rank)

    def drop(self, gradients: int = 1) -> None:
        """Make no step along that many gradients: their samples are spent all the same.

        So the schedule of the learning rate ends with the budget, whatever is dropped.
        """
        self.samples += self._samples_per_gradient * gradients

    def _refuse_own(self, name: str) -> NoReturn:
        raise RuntimeError(
            f"node.{name}() changes one worker's parameters alone, and a method that is "
            "`replicated` says that it changes them by node.apply_mean() only"
        )

    def _recount(self, shared: SharedParameters) -> None:
        """Take in the steps that other workers have made on parameters that all share."""
        self.versions[0] = shared.version
        self.samples = self.versions[0] * self.batch_size

    # Messages

    def send(self, to: int, message: Any) -> None:
        """Send by value and return at once; what is sent to a departed node is lost."""
        self.runtime.send(self, to, message)

    def recv(
        self,
        message_type: type[M],
        source: int | None = None,
        tag: tuple[int, int] | None = None,
        departures: bool = False,
    ) -> Receive[M]:
        """Await the next message of that type: `sender, message = await node.recv(Type)`.

        `tag` takes only messages whose own `tag` equals it. With `departures` whoever departs
        meanwhile ends the wait: for a server that may be waiting for just that worker.

        Raises:
            PeerLost: the named source has departed and has nothing left to be read; or, with
                `departures`, any peer has departed since.
        """
        return Receive(message_type, source, tag, departures)

    def poll(self, message_type: type[M], source: int | None = None) -> tuple[int, M] | None:
        """The same if one is already here, else None; never suspends."""
        return self.runtime.poll(self, Receive(message_type, source, None))

    # Suspending

    def gradient(
        self,
        at: Tensor | None = None,
        batch: Tensor | None = None,
        cancel_on: type | None = None,
    ) -> GradientRequest:
        """Await a minibatch gradient at a snapshot taken now.

        `at` (d,), which is not to be changed before the gradient is there, replaces the node's
        parameters as the point; `batch`, indices of training samples, replaces the next minibatch
        of this worker's shard. With `cancel_on` the arrival of a message of that type gives None
        instead, and leaves the message.

        Raises:
            RuntimeError: when awaited after the parameters were changed; or in the midst of
                `apply_mean`, if the method is `replicated`.
        """
        if self.in_step and self.replicated:
            raise RuntimeError(
                "node.gradient() in the midst of node.apply_mean(): others may be changing the "
                "parameters, as the method is `replicated`; await apply_mean() first"
            )
        if self.shared is not None:
            self._recount(self.shared)
        step = self.requests
        self.requests += 1
        self._mixes_at_snapshot = self._mixes
        if batch is not None:
            self._require_minibatches()
        point = self.parameters if at is None else at
        versions = tuple(self.versions)
        return GradientRequest(self, point, batch, cancel_on, step, versions, self.changes)

    def minibatch(self, number: int) -> Tensor:
        """Sample numbers (b,) of one minibatch of the whole training set, for `gradient(batch=)`.

        They are in the order in which a single worker would go through all samples, epoch after
        epoch; the same on every node.
        """
        return self._require_minibatches()(number)

    def _require_minibatches(self) -> Callable[[int], Tensor]:
        if self.minibatches is None:
            raise ValueError(
                "in the user's own loop the samples of a gradient are the loop's: a method cannot "
                "choose them"
            )
        return self.minibatches

    def sleep(self, seconds: float) -> Sleep:
        """Await that many seconds."""
        return Sleep(seconds)

    def start(self, coroutine: Coroutine[Any, Any, R]) -> Started[R]:
        """Run a coroutine beside this role; await what is returned for its result."""
        return self.runtime.start(self, coroutine.__name__, coroutine)

    def all_reduce(
        self, x: Gradient | Tensor, group: Sequence[int] | None = None, key: int | None = None
    ) -> Awaitable[Tensor]:
        """Await the mean of `x` over all workers or a group, in which all give the same shape.

        The mean of a gradient is a vector (d,).

        Several may be open at once under different keys. Each member makes its calls under one
        key in the same order.

        Raises:
            PeerLost: a member has departed.
        """
        members: Group = self.workers
        if group is not None and list(group) != list(members):
            members = tuple(group)
        if self.rank not in members:
            raise ValueError(f"node {self.rank} is not in the group {members}")
        values = x.dense if isinstance(x, Gradient) else x
        return self.runtime.all_reduce(self, values, members, self._next_tag(members, key))

    def _next_tag(self, members: Group, key: int | None) -> tuple[int, int]:
        """Of the group's next collective under that key."""
        sequence = self._collectives.get((members, key), 0)
        self._collectives[members, key] = sequence + 1
        return hash_of((members, key)), sequence

    def barrier(self) -> Awaitable[Tensor]:
        """Await until every worker has come to its barrier."""
        return self.all_reduce(torch.zeros(len(self.workers)), key=-1)


def hash_of(value: object) -> int:
    """A hash that is the same in every process."""
    import zlib

    return zlib.crc32(repr(value).encode())
