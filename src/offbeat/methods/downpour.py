"""Downpour SGD."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..messages import message
from ..method import ServerMethod
from ..node import Node
from ..suspensions import PeerLost
from .async_sgd import Pull


@message
class AccruedPush:  # worker -> server
    gradient: Tensor  # (d,) of the server's shard, a sum; (0,) asks for the parameters instead
    taken_at: Tensor  # (k,) int64: versions of the shard that the k gradients were taken at


@dataclass
class Accrued:
    """Of a worker: what it has not pushed yet, and whether it has fetched."""

    gradient: Tensor | None = None
    """(d,): the sum."""
    taken_at: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    """Of each gradient, the version of every shard."""
    fetched: bool = False


@dataclass(frozen=True, kw_only=True)
class Downpour(ServerMethod):
    """Downpour SGD: workers go on alone between fetching parameters and pushing summed gradients.

    Each step:  accrued += g(x_i);  x_i <- x_i - alpha g(x_i)
    Every n_push steps the server steps along accrued, which begins anew; every n_fetch steps x_i is
    what the server holds, which may have come while the gradient was computed.

    The server's step is the inner optimizer's: `torch.optim.Adagrad` makes it the paper's, its
    eps = 1e-10 added outside the root. A push of k gradients is their sum, not their mean.

    Args:
        fetch_every: n_fetch, steps of a worker from one fetch to the next.
        push_every: n_push, steps of a worker from one push to the next.
        local_lr: alpha, of the plain steps that a worker makes on its own copy.
        fetch: whether a worker fetches while it computes the next gradient, or waits before it. The
            first fetch is always waited for.
        warm_start: pushes of one worker alone, before the servers answer the others.

    Roles: worker, server. Messages: AccruedPush, Pull.
    Reference: Dean et al., "Large Scale Distributed Deep Networks", 2012, section 4.1 and
    the client's pseudocode in the appendix.
    Differences: a fetch under way is waited for at the end of the gradient that it goes beside. The
    first push is of n_push gradients, where the algorithm's is of one.
    """

    fetch_every: int = 1
    push_every: int = 1
    local_lr: float = 0.01
    fetch: Literal["overlap", "wait"] = "overlap"
    warm_start: int = 0

    messages: ClassVar[tuple[type, ...]] = (AccruedPush, Pull)
    serial: ClassVar[dict[str, Any] | None] = {
        "servers": 1,
        "fetch_every": 1,
        "push_every": 1,
        "fetch": "wait",
    }

    def validate(self, workers: int) -> None:
        super().validate(workers)
        for name, least in (("fetch_every", 1), ("push_every", 1), ("warm_start", 0)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not self.local_lr >= 0:
            raise ValueError(f"local_lr is {self.local_lr:g}; it must not be negative")

    async def serve(self, node: Node) -> None:
        worker, push = await self._receive(node)
        if len(push.taken_at):
            node.apply(push.gradient, taken_at=push.taken_at.tolist())
        else:
            node.send(worker, Pull(node.parameters, node.version))

    async def _receive(self, node: Node) -> tuple[int, AccruedPush]:
        """The next push or fetch; during the warm start, of the first worker that is there."""
        while node.version < self.warm_start:
            there = (w for w in node.workers if w not in node.departed and node.is_live(w))
            if (first := next(there, None)) is None:
                break
            with contextlib.suppress(PeerLost):
                return await node.recv(AccruedPush, source=first)
        return await node.recv(AccruedPush)

    async def step(self, node: Node) -> None:
        accrued, fetching = node.state(Accrued), None
        if not accrued.fetched or node.round % self.fetch_every == 0:
            fetching = node.start(self._fetch(node))
            if self.fetch == "wait" or not accrued.fetched:
                await fetching
        gradient = await node.gradient()
        if fetching is not None:
            await fetching
        accrued.fetched = True
        accrued.taken_at.append(gradient.versions)
        total = gradient.vector if accrued.gradient is None else accrued.gradient + gradient.vector
        accrued.gradient = total
        node.mix(add=-self.local_lr * gradient.vector)
        if (node.round + 1) % self.push_every == 0:
            self._push(node, total, accrued.taken_at)
            accrued.gradient, accrued.taken_at = None, []

    def _push(self, node: Node, total: Tensor, taken_at: list[tuple[int, ...]]) -> None:
        for shard in node.shards:
            versions = torch.tensor([of_all[shard.index] for of_all in taken_at])
            node.send(shard.server, AccruedPush(total[shard.span], versions))

    async def _fetch(self, node: Node) -> None:
        nothing = AccruedPush(node.parameters[:0], torch.empty(0, dtype=torch.int64))
        for shard in node.shards:
            node.send(shard.server, nothing)
        for shard in node.shards:
            _, pull = await node.recv(Pull, source=shard.server)
            node.load(pull.parameters, pull.version, shard)
