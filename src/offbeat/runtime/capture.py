"""Capture: all that decides how a node goes on from between two rounds, and a node made of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..encoding import decode, encode
from ..method import NextRound
from ..node import Node
from ..stepping import OuterOptimizer, ParameterOptimizer
from ..suspensions import GradientRequest, Receive
from .errors import RunError
from .scheduler import Scheduler
from .tasks import Finished, Task


class CaptureError(RunError, ValueError):
    """A node that is not between two rounds, or a state that is not the node's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OptimizerState:
    """What an optimizer remembers."""

    groups: tuple[dict[str, Any], ...]
    """Hyper-parameters of each parameter group."""
    buffers: tuple[Any, ...]
    """Of each parameter, in the order of the groups; None where it has none."""
    own: Any
    """Of an optimizer with a `state_dict` of its own, that; None otherwise."""
    base_rates: tuple[Any, ...]
    scale: float

    @classmethod
    def of(cls, optimizer: ParameterOptimizer) -> OptimizerState:
        inner = optimizer.inner
        if optimizer.remembers_more:
            raise CaptureError(
                f"{type(inner).__name__} keeps state of no parameter; it cannot be captured"
            )
        groups = [{k: v for k, v in g.items() if k != "params"} for g in inner.param_groups]
        return cls(
            groups=tuple(groups),
            buffers=optimizer.remembered(),
            own=inner.state_dict() if type(inner).state_dict is not Optimizer.state_dict else None,
            base_rates=tuple(optimizer._base_rates),
            scale=optimizer._scale,
        )

    def restore(self, optimizer: ParameterOptimizer) -> None:
        """Go on as the one did that this was taken of.

        Raises:
            CaptureError: other groups, or another number of parameters.
        """
        inner = optimizer.inner
        parameters = optimizer.remembered()
        if (len(inner.param_groups), len(parameters)) != (len(self.groups), len(self.buffers)):
            raise CaptureError(
                f"the optimizer's state is of {len(self.groups)} groups and {len(self.buffers)} "
                f"parameters, and it has {len(inner.param_groups)} and {len(parameters)}"
            )
        if self.own is not None:
            inner.load_state_dict(self.own)
        else:
            # Not load_state_dict, which casts whatever it finds to the parameter's type.
            optimizer.remember(self.buffers)
        for group, saved in zip(inner.param_groups, self.groups, strict=True):
            group.update(saved)
        optimizer._base_rates = list(self.base_rates)
        optimizer._scale = self.scale
        optimizer.has_stepped = True


@dataclass(frozen=True, kw_only=True, eq=False)
class OuterState:
    """An optimizer of the method's own, and its vector."""

    vector: Tensor
    optimizer: OptimizerState

    @classmethod
    def of(cls, outer: OuterOptimizer) -> OuterState:
        return cls(vector=outer.parameters, optimizer=OptimizerState.of(outer._optimizer))

    def restore(self, outer: OuterOptimizer) -> None:
        outer.parameters.copy_(self.vector)
        self.optimizer.restore(outer._optimizer)


@dataclass(frozen=True, kw_only=True, eq=False)
class NodeState:
    """A node between two rounds. Its tensors are the node's own, not copies."""

    rank: int
    parameters: dict[str, Tensor]
    """By name, as a module's state_dict has them."""
    versions: tuple[int, ...]
    round: int
    requests: int
    samples: int
    mixes: int
    mixes_at_snapshot: int
    random: Any
    """Of `random.Random.getstate`."""
    states: tuple[Any, ...]
    """What the method keeps by `node.state`."""
    optimizer: OptimizerState | None
    """None before the first step."""
    outer: dict[str, OuterState]
    collectives: tuple[tuple[tuple[int, ...], int | None, int], ...]
    """Members, key and number of the next one."""
    departed: tuple[int, ...]
    first_round: dict[int, int]
    unread: tuple[tuple[int, int, Any], ...]
    """Messages that no role has taken: sender, number from that sender, message."""
    received: dict[int, int]
    """Messages so far, by sender."""


def capture(scheduler: Scheduler, rank: int) -> bytes:
    """What decides how that node goes on, as `restore` reads it; nothing of it may run meanwhile.

    A worker has to be held between two rounds, or to await the first gradient of a round that the
    budget refuses: then that round begins anew. A server, and what runs beside a worker, has to
    await the first message of a round of its own.

    Raises:
        CaptureError: a role is in the middle of something.
        EncodingError: the method keeps what cannot be written.
    """
    node, mailbox = scheduler.nodes[rank], scheduler.mailboxes[rank]
    if node.shared is not None:
        raise CaptureError(
            f"{type(scheduler.method).__name__} cannot be checkpointed: its workers share their "
            "parameters and change them at any time"
        )
    unread = [(s, n, message) for q in mailbox.by_type.values() for s, message, n in q]
    again = sum(_begins_anew(scheduler, t, unread=bool(unread)) for t in scheduler.tasks[rank])
    for kind, held in node.states.items():
        if type(held) is not kind:
            raise CaptureError(f"node {rank} keeps a {type(held).__name__} as its {kind.__name__}")
    views = node.layout.views(node.parameters)
    state = NodeState(
        rank=rank,
        parameters=dict(zip(node.layout.names, views, strict=True)),
        versions=tuple(node.versions),
        round=node.round,
        requests=node.requests - again,
        samples=node.samples,
        mixes=node._mixes,
        mixes_at_snapshot=node._mixes_at_snapshot,
        random=node.rng.getstate(),
        states=tuple(node.states.values()),
        optimizer=None if node._optimizer is None else OptimizerState.of(node._optimizer),
        outer={name: OuterState.of(outer) for name, outer in node._outer.items()}
        | node.saved_outer,
        collectives=tuple(
            (tuple(group), key, number) for (group, key), number in node._collectives.items()
        ),
        departed=tuple(sorted(node.departed)),
        first_round=node.first_round,
        unread=tuple(unread),
        received=dict(sorted(mailbox.counts.items())),
    )
    return encode(state, replace=_result)


def read_state(data: bytes | memoryview, types: Iterable[type] = ()) -> NodeState:
    """The state that `capture` wrote.

    Args:
        types: classes of states and messages that are defined inside functions.

    Raises:
        EncodingError: the bytes are no such state, or of classes that are not here or differ.
        CaptureError: they are something else.
    """
    state = decode(data, types)
    if not isinstance(state, NodeState):
        raise CaptureError(f"this is a {type(state).__name__}, and no state of a node")
    return state


def restore(scheduler: Scheduler, state: NodeState) -> None:
    """Let the node of that rank, whose roles have not begun, go on from there.

    Raises:
        CaptureError: it is another node's, the node's parameters have other names, shapes or
            numbers, or it has other optimizers.
    """
    if state.rank not in scheduler.nodes:
        raise CaptureError(f"this is the state of node {state.rank}, which is elsewhere")
    node, mailbox = scheduler.nodes[state.rank], scheduler.mailboxes[state.rank]
    _require_layout(node, state.parameters)
    for view, (_, saved) in zip(
        node.layout.views(node.parameters), state.parameters.items(), strict=True
    ):
        view.copy_(saved)
    node.versions[:] = state.versions
    node.round, node.requests, node.samples = state.round, state.requests, state.samples
    node._mixes, node._mixes_at_snapshot = state.mixes, state.mixes_at_snapshot
    node.rng.setstate(state.random)
    node.states = {type(held): held for held in state.states}
    if state.optimizer is not None:
        optimizer = node.make_optimizer()
        state.optimizer.restore(optimizer)
        node.take_optimizer(optimizer)
    # They come into being when the method asks for them, which knows how they are made.
    node.saved_outer = dict(state.outer)
    everyone = tuple(node.workers)
    node._collectives = {
        (node.workers if members == everyone else members, key): number
        for members, key, number in state.collectives
    }
    node.departed = set(state.departed)
    node.first_round = dict(state.first_round)
    mailbox.counts = dict(state.received)
    mailbox.by_type = {}
    for source, number, message in state.unread:
        mailbox.by_type.setdefault(type(message), deque()).append((source, message, number))


def _begins_anew(scheduler: Scheduler, task: Task, *, unread: bool) -> bool:
    """Whether the worker's present gradient is to be asked for again.

    Raises:
        CaptureError: the role cannot be begun anew from where it is.
    """
    waiting, node = task.waiting, task.node
    if task.is_role and isinstance(waiting, NextRound):
        return False
    serves = task.is_role and (node.is_server or task.id > 0)
    if serves and isinstance(waiting, Receive) and task.fresh:
        return False
    if task.is_role and isinstance(waiting, GradientRequest):
        # Where nobody counts another's rounds one may be given up, as long as no answer to what
        # was sent in it is here or under way.
        open_ends = unread or any(not other.is_role for other in scheduler.tasks[node.rank])
        if task.fresh or not (scheduler.method.synchronous or open_ends):
            return True
    raise CaptureError(f"{task.describe()} in the middle of a round, and cannot be captured there")


def _result(value: Any) -> Any:
    """What is written in place of a task."""
    ended = isinstance(value, Task) and value.outcome is not None and value.outcome[1] is None
    return Finished(value.outcome[0]) if ended and value.outcome is not None else value


def _require_layout(node: Node, parameters: Mapping[str, Tensor]) -> None:
    ours = dict(zip(node.layout.names, node.layout.shapes, strict=True))
    theirs = {name: tuple(saved.shape) for name, saved in parameters.items()}
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise CaptureError(
                f"the models differ: parameter {name} of node {node.rank} has shape "
                f"{ours.get(name, 'none')} here and {theirs.get(name, 'none')} in the checkpoint"
            )
        if (kind := parameters[name].dtype) != node.parameters.dtype:
            raise CaptureError(
                f"the models differ: parameter {name} of node {node.rank} is of "
                f"{node.parameters.dtype} here and {kind} in the checkpoint"
            )
    if list(ours) != list(theirs):
        raise CaptureError(f"the models differ: node {node.rank} orders its parameters differently")
