"""Learning-rate schedules: a factor on every base rate, by samples applied."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Schedule(ABC):
    """Position is counted in samples applied, so it means the same under every method."""

    @abstractmethod
    def factor(self, samples: int) -> float:
        """What the base learning rates are multiplied by after that many samples."""


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The base rate throughout."""

    def factor(self, samples: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Linear warm-up to 1 over `warmup` samples, then a half cosine down to 0 at `total`."""

    total: int
    warmup: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.total:
            raise ValueError(
                f"schedule: warmup {self.warmup} must be at least 0 and below total {self.total}"
            )

    def factor(self, samples: int) -> float:
        if samples < self.warmup:
            return samples / self.warmup
        progress = min(1.0, (samples - self.warmup) / (self.total - self.warmup))
        return (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class Steps(Schedule):
    """Multiply by `gamma` at each of `milestones`, given in samples."""

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def factor(self, samples: int) -> float:
        return self.gamma ** sum(samples >= milestone for milestone in self.milestones)
