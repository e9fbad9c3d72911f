"""Executor: what a scheduler leaves to its runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any

import torch
from torch import Tensor

from ..node import Node
from ..parameters import Dense
from ..suspensions import Gradient, GradientRequest, Group, Meet
from .causes import Cause
from .tasks import Task


class Executor(ABC):
    """What the scheduler leaves to a runtime."""

    @abstractmethod
    def request_gradient(self, task: Task, request: GradientRequest) -> None:
        """Answer later with `Scheduler.resume(task, gradient)`, or never: the budget is spent.

        The snapshot is to be copied if anything may change it before the gradient is there.
        """

    @abstractmethod
    def sleep(self, task: Task, seconds: float) -> None: ...

    @abstractmethod
    def meet(self, task: Task, meet: Meet) -> None: ...

    @abstractmethod
    def all_reduce(
        self, node: Node, values: Dense, group: Group, tag: tuple[int, int]
    ) -> Awaitable[Tensor]:
        """The mean of `values` over a group; `tag` is of this collective alone."""

    async def apply_mean(
        self, node: Node, gradient: Gradient, group: Group, tag: tuple[int, int]
    ) -> None:
        """A step of the inner optimizer along the mean of a group's gradients."""
        mean = await self.all_reduce(node, gradient.dense, group, tag)
        node._step(mean, (gradient.version,))

    def buffer(
        self, like: Tensor, size: int | None = None, at: int = 0, given: bool = False
    ) -> Tensor:
        """A tensor like that one, its contents undefined, in memory that is good to send from.

        Args:
            size: of a flat one; that one's shape if None.
            at: how many numbers come before it in the vector that `join` will make of it.
            given: it will be sent to one node, and not be looked at here again.
        """
        return torch.empty_like(like) if size is None else like.new_empty(size)

    def is_ready(self, x: Tensor) -> bool:
        """Whether a tensor lies in memory that is good to send from."""
        return False

    def is_given(self, received: Tensor) -> bool:
        """Whether a message's tensor may be written, and what is written sent back at no cost."""
        return False

    def join(self, pieces: Sequence[Tensor], read_only: bool = False) -> Tensor:
        """Flat tensors one after the other; without a copy where they lie well for that.

        If it is `read_only` the caller does not write to what it gets.
        """
        return torch.cat(list(pieces))

    @abstractmethod
    def next_round(self, task: Task) -> bool:
        """Whether the worker may begin another round; if not it stays suspended."""

    def cancelled(self, task: Task, request: GradientRequest) -> None:
        """The gradient is not awaited any more."""

    def waited(self, task: Task) -> None:
        """The worker's own role suspends in anything but a gradient."""

    def resumed(self, task: Task, cause: Cause | None) -> None:
        """A role goes on, or its suspension is answered at once: why, where a journal says so."""

    def noticed(self, node: Node, peer: int) -> None:
        """The node has learnt that a peer departed (for the journal)."""

    def absence(self, rank: int) -> str:
        """What has become of a node that takes no part any more, as the end of a sentence."""
        return "is gone"

    def watched(self, node: Node, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """What to step in place of a coroutine that begins on the node: itself, or a wrapper."""
        return coroutine
