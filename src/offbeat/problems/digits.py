"""The handwritten digits that come with scikit-learn: real data, nothing to fetch."""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
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


def read_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels (1797, 64), from 0 to 16, and classes (1797,), as scikit-learn's `load_digits`.

    Its file is read without it, for to import that takes a second at the start of every process.
    """
    scikit = find_spec("sklearn")
    assert scikit is not None
    assert scikit.submodule_search_locations is not None
    (package,) = scikit.submodule_search_locations
    rows = np.loadtxt(Path(package) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return rows[:, :-1], rows[:, -1].astype(np.int64)


@lru_cache(maxsize=4)
def _load(validation: float) -> Data:
    pixels, classes = read_digits()
    images = torch.from_numpy(np.asarray(pixels, dtype=np.float32) / 16)
    whole = Split(images, torch.from_numpy(classes))
    rest, test = hold_out(whole, TEST_FRACTION)
    train, held = hold_out(rest, validation)
    return Data(train=train, validation=held, test=test)
