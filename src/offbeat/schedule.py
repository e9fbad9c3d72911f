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
        _require_room(self.warmup, self.total)

    def factor(self, samples: int) -> float:
        if samples < self.warmup:
            return samples / self.warmup
        progress = min(1.0, (samples - self.warmup) / (self.total - self.warmup))
        return (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """Linear warm-up to 1 over `warmup` samples, then (1 - progress)^power, 0 at `total`.

    LARS has power 2, LAMB power 1 after a warm-up.
    """

    total: int
    warmup: int = 0
    power: float = 1.0

    def __post_init__(self) -> None:
        _require_room(self.warmup, self.total)
        if not self.power > 0:
            raise ValueError(f"schedule: power is {self.power:g}; it must be positive")

    def factor(self, samples: int) -> float:
        if samples < self.warmup:
            return samples / self.warmup
        progress = min(1.0, (samples - self.warmup) / (self.total - self.warmup))
        return (1 - progress) ** self.power


@dataclass(frozen=True, kw_only=True)
class Steps(Schedule):
    """Multiply by `gamma` at each of `milestones`, given in samples."""

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def factor(self, samples: int) -> float:
        return self.gamma ** sum(samples >= milestone for milestone in self.milestones)


@dataclass(frozen=True, kw_only=True)
class XuSchedule(Schedule):
    """(1 + decay t)^-power after t samples: for averaged SGD, such as `offbeat.optim.polyak`.

    The paper's gamma_t = gamma_0 (1 + a gamma_0 t)^-c takes one sample a step: decay is a gamma_0
    (divided by the batch size if steps are to count instead), c is `power`. A mean of iterates
    wants a rate that falls more slowly than 1/t: c between 1/2 and 1.

    Reference: Xu, "Towards optimal one pass large scale learning with averaged stochastic gradient
    descent", 2011.
    """

    decay: float
    power: float = 0.75

    def __post_init__(self) -> None:
        for name in ("decay", "power"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"schedule: {name} is {getattr(self, name):g}; it must not be negative"
                )

    def factor(self, samples: int) -> float:
        return (1 + self.decay * samples) ** -self.power


def _require_room(warmup: int, total: int) -> None:
    if not 0 <= warmup < total:
        raise ValueError(f"schedule: warmup {warmup} must be at least 0 and below total {total}")
