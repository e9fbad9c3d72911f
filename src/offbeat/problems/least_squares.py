"""Linear least squares with a chosen condition number and a known optimum."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from offbeat.problems.problem import Data, Problem, Split, Summary


@dataclass(frozen=True, kw_only=True)
class LeastSquares(Problem):
    """f(x) = |A x - b|^2 / (2 N), with b = A x* + noise * e, and x*, e standard normal.

    The eigenvalues of the Hessian A^T A / N that are not zero are spaced evenly on a log scale
    from 1 down to 1 / condition, so gradient descent is stable up to learning rate 2. There are
    min(dimension, samples) of them. With more dimensions than samples many points are optimal;
    from the model's start at zero, methods that stay in the span of the gradients reach the one
    of minimum norm, and that one is `optimum()`.

    Nothing is to be predicted here: train, validation and test are the same samples.

    Args:
        dimension: d, the number of parameters.
        samples: N, the number of rows of A.
        condition: largest over smallest non-zero eigenvalue of the Hessian.
        noise: standard deviation of e's part in b; with 0 every sample can be fitted at once.
        batch_size: samples of one minibatch.
        seed: of A, x* and e.
        double: float64 data and parameters instead of float32.

    Raises:
        ValueError: if a field is out of range, or `condition` is not 1 where the Hessian has one
            non-zero eigenvalue only.
    """

    summary: ClassVar[Summary | None] = Summary(
        samples="200", inputs="20 numbers", classes="-", source="drawn from the seed"
    )

    dimension: int = 20
    samples: int = 200
    condition: float = 10.0
    noise: float = 0.0
    batch_size: int = 8
    seed: int = 0
    double: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimension < 1 or self.samples < 1:
            raise ValueError(
                f"dimension and samples must be at least 1, not {self.dimension} and {self.samples}"
            )
        if not (1 <= self.condition < math.inf):
            raise ValueError(f"condition must be at least 1 and finite, not {self.condition}")
        if min(self.dimension, self.samples) == 1 and self.condition != 1:
            raise ValueError(
                "with one dimension or one sample the condition number is 1: "
                f"set condition to 1, not {self.condition}"
            )
        if not (0 <= self.noise < math.inf):
            raise ValueError(f"noise must be finite and not negative, not {self.noise}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")

    def model(self) -> nn.Module:
        return LinearModel(self.dimension, torch.float64 if self.double else torch.float32)

    def data(self) -> Data:
        split = _generate(self)
        return Data(train=split, validation=split, test=split)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - targets).square().mean()

    def evaluate(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        with torch.no_grad():
            return {"loss": self.loss(outputs, targets).item()}

    def optimum(self) -> Tensor:
        """The minimizer of the loss, of least norm where there are several, (d,)."""
        return _solve(self)[0].clone()

    def minimum(self) -> float:
        """The least loss that any parameters have, computed in float64."""
        return _solve(self)[1]


class LinearModel(nn.Module):
    """Inputs (N, d) times `weight` (d,), which starts at zero: outputs (N,)."""

    def __init__(self, dimension: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dimension, dtype=dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


@lru_cache(maxsize=16)
def _generate(problem: LeastSquares) -> Split:
    """A (N, d) and b (N,): A = sqrt(N) U diag(sqrt(eigenvalues)) V^T, U and V random."""
    rng = np.random.Generator(np.random.PCG64(problem.seed))
    rank = min(problem.samples, problem.dimension)
    U = np.linalg.qr(rng.standard_normal((problem.samples, rank)))[0]
    V = np.linalg.qr(rng.standard_normal((problem.dimension, rank)))[0]
    eigenvalues = np.geomspace(1.0, 1.0 / problem.condition, rank)
    A = math.sqrt(problem.samples) * (U * np.sqrt(eigenvalues)) @ V.T
    b = A @ rng.standard_normal(problem.dimension)
    b += problem.noise * rng.standard_normal(problem.samples)
    dtype = torch.float64 if problem.double else torch.float32
    return Split(torch.from_numpy(A).to(dtype), torch.from_numpy(b).to(dtype))


@lru_cache(maxsize=16)
def _solve(problem: LeastSquares) -> tuple[Tensor, float]:
    """Optimum (d,) and minimum of the samples as they are, that is after rounding to float32."""
    split = _generate(problem)
    A, b = split.inputs.double().numpy(), split.targets.double().numpy()
    x = np.linalg.lstsq(A, b, rcond=None)[0]
    minimum = 0.5 * float(np.mean((A @ x - b) ** 2))
    return torch.from_numpy(x).to(split.inputs.dtype), minimum
