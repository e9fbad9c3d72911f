"""The handwritten digits that come with scikit-learn: real data, nothing to fetch."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from offbeat.problems.classification import Classification
from offbeat.problems.holdout import check_fraction, hold_out
from offbeat.problems.problem import Data, Split, Summary

TEST_FRACTION = 0.2


@dataclass(frozen=True, kw_only=True)
class Digits(Classification):
    """1,797 images of 8x8 pixels in ten classes, and a network with one hidden layer of ReLUs.

    Inputs are (N, 64) float32, pixels divided by 16 to lie in 0..1. A fixed fifth of each class
    is the test part. The images are the test part of "Optical Recognition of Handwritten Digits"
    (Alpaydin, Kaynak 1998, UCI Machine Learning Repository).

    Args:
        hidden: units of the hidden layer.
        batch_size: samples of one minibatch.
        validation: fraction of what is not test that is held out from training to choose by.

    Raises:
        ValueError: if a field is out of range.
    """

    summary: ClassVar[Summary | None] = Summary(
        samples="1,438 + 359", inputs="64 pixels", classes="10", source="scikit-learn"
    )

    hidden: int = 32
    batch_size: int = 16
    validation: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.validation)
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, not {self.hidden}")

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 10))

    def data(self) -> Data:
        return _load(self.validation)


@lru_cache(maxsize=4)
def _load(validation: float) -> Data:
    # Here, because it takes a second to import and most problems do without.
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.from_numpy(np.asarray(bunch.data, dtype=np.float32) / 16)
    whole = Split(images, torch.from_numpy(np.asarray(bunch.target, dtype=np.int64)))
    rest, test = hold_out(whole, TEST_FRACTION)
    train, held = hold_out(rest, validation)
    return Data(train=train, validation=held, test=test)
