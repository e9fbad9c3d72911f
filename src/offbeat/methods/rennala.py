"""Rennala SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .gathering import GatheringSGD
from .staleness import DropBeyond, StalenessRule


@dataclass(frozen=True, kw_only=True)
class RennalaSGD(GatheringSGD):
    """Rennala SGD: x_{k+1} = x_k - lr * (1/S) sum of the first S gradients that were taken at x_k.

    Whoever is fast gives several of them. A gradient of an earlier x is dropped, and its worker
    goes on from the present one. So every step is along an unbiased minibatch gradient without
    staleness, and no worker, however slow, is waited for. With S = n equal workers a step is a
    synchronous minibatch, after the first of other minibatches than SyncSGD's: who is not the last
    of a step has begun another gradient, which is dropped, so that a step may take the time of two
    and have two gradients of one worker.

    Args:
        gradients: S, gradients to a step; the number of workers if not given. The theory's is
            max(1, ceil(sigma^2 / eps)) for noise of variance sigma^2 and an aim of
            |grad f|^2 = eps.

    Roles: worker, server. Messages: Push, Pull.
    Reference: Tyurin and Richtárik, "Optimal Time Complexities of Parallel Stochastic Optimization
    Methods Under a Fixed Computation Model", NeurIPS 2023.
    Differences: several servers drop and count each for its own part of the parameters.
    """

    gradients: int | None = None

    serial: ClassVar[dict[str, Any] | None] = {"gradients": 1, "servers": 1}

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.gradients is not None and self.gradients < 1:
            raise ValueError(f"gradients is {self.gradients}; it must be at least 1")

    def gathers(self, workers: int) -> int:
        return workers if self.gradients is None else self.gradients

    def rule_of(self) -> StalenessRule:
        return DropBeyond(limit=0)
