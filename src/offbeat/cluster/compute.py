"""Compute times: how long one minibatch gradient takes, as distributions and as measured."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .checks import require_positive


class ComputeTime(ABC):
    """How long one minibatch gradient takes, in seconds."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """That many times, in seconds, all above 0."""

    def stream(self, rng: np.random.Generator) -> Iterator[float]:
        """One worker's times in turn, in seconds, without end."""
        while True:
            yield from self.sample(rng, 256).tolist()


@dataclass(frozen=True, kw_only=True)
class Constant(ComputeTime):
    """Every gradient takes `seconds`."""

    seconds: float = 0.01

    def __post_init__(self) -> None:
        require_positive("compute.seconds", self.seconds)

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        return np.full(count, self.seconds)


@dataclass(frozen=True, kw_only=True)
class Normal(ComputeTime):
    """Normal with mean `seconds` and that standard `deviation`, in seconds.

    No gradient takes less than a hundredth of `seconds`: shorter times are raised to that. This
    changes the mean by less than a thousandth while `deviation` is at most a third of `seconds`.
    """

    seconds: float = 0.01
    deviation: float = 0.001

    def __post_init__(self) -> None:
        require_positive("compute.seconds", self.seconds)
        if not self.deviation >= 0 or not math.isfinite(self.deviation):
            raise ValueError(f"compute.deviation is {self.deviation:g} s; it must not be negative")

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        return np.maximum(rng.normal(self.seconds, self.deviation, count), self.seconds / 100)


@dataclass(frozen=True, kw_only=True)
class Lognormal(ComputeTime):
    """Lognormal with mean `seconds`; `sigma` is the standard deviation of the logarithm."""

    seconds: float = 0.01
    sigma: float = 0.2

    def __post_init__(self) -> None:
        require_positive("compute.seconds", self.seconds)
        if not self.sigma >= 0 or not math.isfinite(self.sigma):
            raise ValueError(f"compute.sigma is {self.sigma:g}; it must not be negative")

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        mu = np.log(self.seconds) - self.sigma**2 / 2
        return rng.lognormal(mu, self.sigma, count)


@dataclass(frozen=True, kw_only=True)
class Exponential(ComputeTime):
    """Exponential with mean `seconds`."""

    seconds: float = 0.01

    def __post_init__(self) -> None:
        require_positive("compute.seconds", self.seconds)

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        return rng.exponential(self.seconds, count)


@dataclass(frozen=True, kw_only=True)
class Pareto(ComputeTime):
    """Pareto with mean `seconds`: P(time > t) falls as t to the power of minus `shape`.

    The shortest time is seconds (shape - 1) / shape. The smaller the shape the longer the rare
    long ones; up to 2 their variance is infinite, and up to 1 there would be no mean.
    """

    seconds: float = 0.01
    shape: float = 3.0

    def __post_init__(self) -> None:
        require_positive("compute.seconds", self.seconds)
        if not self.shape > 1 or not math.isfinite(self.shape):
            raise ValueError(
                f"compute.shape is {self.shape:g}; it must be more than 1, or there is no mean"
            )

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        least = self.seconds * (self.shape - 1) / self.shape
        return least * (1.0 + rng.pareto(self.shape, count))


@dataclass(frozen=True, kw_only=True)
class Recorded(ComputeTime):
    """Times that were measured, in the order in which they were.

    Each worker begins at a place that the seed decides, goes on in order, and begins again at the
    first when it has had the last. So what belongs together, such as a slow spell, stays together.

    Args:
        seconds: the times, or the path of a text file with one number a line. The file is read
            once, here: the experiment then holds the numbers themselves.
    """

    seconds: tuple[float, ...] | str

    def __post_init__(self) -> None:
        times = self.seconds
        if isinstance(times, str):
            times = _read_times(Path(times))
        object.__setattr__(self, "seconds", tuple(float(time) for time in times))
        if not self.seconds:
            raise ValueError("compute.seconds holds no times; give at least one")
        for number, time in enumerate(self.times):
            require_positive(f"compute.seconds[{number}]", time)

    @property
    def times(self) -> tuple[float, ...]:
        """The measured times, in seconds."""
        assert not isinstance(self.seconds, str)
        return self.seconds

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        return np.fromiter(islice(self.stream(rng), count), np.float64, count)

    def stream(self, rng: np.random.Generator) -> Iterator[float]:
        first = int(rng.integers(len(self.times)))
        return islice(cycle(self.times), first, None)


def _read_times(path: Path) -> tuple[float, ...]:
    """One number a line; empty lines, and a first line of words, are passed over."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"cannot read compute.seconds from {path}: {reason}") from error
    times: list[float] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip().strip(",")
        if not text or (number == 1 and re.match(r"[A-Za-z_\"#]", text)):
            continue
        try:
            times.append(float(text))
        except ValueError:
            raise ValueError(f"{path}, line {number}: {text!r} is no number of seconds") from None
    return tuple(times)
