"""A user's own model and tensors as a problem."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from offbeat.problems.classification import accuracy
from offbeat.problems.holdout import check_fraction, hold_out, is_classes
from offbeat.problems.problem import Data, Problem, Split


@dataclass(frozen=True, kw_only=True)
class Supervised(Problem):
    """Any module trained on tensors held in memory; built in Python, not from a file.

    "accuracy" is reported where targets are class numbers (N,) and outputs are (N, classes).

    Args:
        model_factory: makes a fresh module, drawing its start from torch's global generator.
        train: samples to train on, out of which the validation part is taken.
        test: samples to report on.
        loss_function: (outputs, targets) to the scalar mean loss, such as `F.cross_entropy`.
        batch_size: samples of one minibatch.
        validation: fraction of `train` that is held out from training to choose by.

    Raises:
        ValueError: if `batch_size` or `validation` is out of range.
    """

    model_factory: Callable[[], nn.Module]
    train: Split
    test: Split
    loss_function: Callable[[Tensor, Tensor], Tensor]
    batch_size: int
    validation: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.validation)

    def model(self) -> nn.Module:
        return self.model_factory()

    def data(self) -> Data:
        return _divide(self.train, self.test, self.validation)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss_function(outputs, targets)

    def evaluate(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        with torch.no_grad():
            metrics = {"loss": self.loss(outputs, targets).item()}
        if is_classes(targets) and outputs.ndim == 2:
            metrics["accuracy"] = accuracy(outputs, targets)
        return metrics


# Small, because what it holds keeps the users' tensors alive.
@lru_cache(maxsize=2)
def _divide(train: Split, test: Split, validation: float) -> Data:
    kept, held = hold_out(train, validation)
    return Data(train=kept, validation=held, test=test)
