"""Ringmaster ASGD."""

from __future__ import annotations

from dataclasses import dataclass

from .gathering import GatheringSGD
from .staleness import ConstantWeight, DropBeyond, StalenessRule


@dataclass(frozen=True, kw_only=True)
class RingmasterSGD(GatheringSGD):
    """Ringmaster ASGD: x <- x - lr * g(x_{k-tau}) if tau < R; else the gradient is dropped.

    A worker finishes a gradient whose delay has come to R, and is answered with the present x. A
    dropped gradient makes no step, so it does not count in the delay of others.

    Args:
        delay_threshold: R, in steps; 1 takes fresh gradients only, None is asynchronous SGD. The
            theory's is max(1, ceil(sigma^2 / eps)) for noise of variance sigma^2 and an aim of
            |grad f|^2 = eps.

    Roles: worker, server. Messages: Push, Pull.
    Reference: Maranjyan, Tyurin and Richtárik, "Ringmaster ASGD: The First Asynchronous SGD with
    Optimal Time Complexity", ICML 2025, algorithm 4, without calculation stops.
    """

    delay_threshold: int | None = 16

    def validate(self, workers: int) -> None:
        if self.delay_threshold is not None and self.delay_threshold < 1:
            raise ValueError(f"delay_threshold is {self.delay_threshold}; it must be at least 1")
        super().validate(workers)

    def gathers(self, workers: int) -> int:
        return 1

    def rule_of(self) -> StalenessRule:
        if self.delay_threshold is None:
            return ConstantWeight()
        return DropBeyond(limit=self.delay_threshold - 1)
