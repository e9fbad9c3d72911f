"""Staleness rules: how much of the learning rate a stale gradient is worth to a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


# A dataclass without fields: then the command line resolves the fields' types of every subclass.
@dataclass(frozen=True)
class StalenessRule(ABC):
    """What the learning rate is multiplied by for a gradient of staleness tau.

    tau is counted in optimizer steps: those that the parameters have had since the gradient's.
    """

    @abstractmethod
    def weight(self, staleness: int, workers: int) -> float:
        """From 0, which drops the gradient, to 1."""

    @property
    def bound(self) -> int | None:
        """The greatest staleness that is applied; None if any is."""
        return None

    def validate(self) -> None:
        """Raise ValueError, in one line, if its settings make no sense."""


@dataclass(frozen=True, kw_only=True)
class ConstantWeight(StalenessRule):
    """1: every gradient is applied with the whole rate."""

    def weight(self, staleness: int, workers: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class InverseStaleness(StalenessRule):
    """1 / tau; of a fresh gradient, tau = 0, it is 1.

    Reference: Zhang et al., "Staleness-aware Async-SGD for Distributed Deep Learning", IJCAI 2016.
    """

    def weight(self, staleness: int, workers: int) -> float:
        return 1.0 / max(1, staleness)


@dataclass(frozen=True, kw_only=True)
class DropBeyond(StalenessRule):
    """1 up to tau = limit, 0 beyond it.

    Args:
        limit: the greatest staleness that is applied; 0 takes fresh gradients only.
    """

    limit: int = 0

    def weight(self, staleness: int, workers: int) -> float:
        return 1.0 if staleness <= self.limit else 0.0

    @property
    def bound(self) -> int | None:
        return self.limit

    def validate(self) -> None:
        if self.limit < 0:
            raise ValueError(f"limit is {self.limit}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class DelayAdaptive(StalenessRule):
    """threshold / max(threshold, tau): 1 up to a threshold, beyond it falling as 1 / tau.

    Args:
        threshold: in optimizer steps; the number of workers if not given.

    Reference: Mishchenko et al., "Asynchronous SGD Beats Minibatch SGD Under Arbitrary Delays",
    NeurIPS 2022.
    """

    threshold: int | None = None

    def weight(self, staleness: int, workers: int) -> float:
        threshold = workers if self.threshold is None else self.threshold
        return threshold / max(threshold, staleness)

    def validate(self) -> None:
        if self.threshold is not None and self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; it must be at least 1")
