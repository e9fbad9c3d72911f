"""Binary classification of sparse samples in files of LIBSVM's text format.

A line is a label and `index:value` pairs, the indices from 1 and increasing. Source: Chang, Lin,
"LIBSVM Data: Classification" (https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html).
No checksums are published there: see `offbeat.problems.fetch` for what is done instead.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offbeat.models.linear import SparseLinear
from offbeat.problems.fetch import PublishedFile, folders_of, obtain, present
from offbeat.problems.holdout import check_fraction, hold_out
from offbeat.problems.problem import Data, Problem, Summary
from offbeat.problems.svmlight import SparseRows, pack, read_svmlight

Name = Literal["a9a", "w8a", "rcv1"]

BASE = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/"
TEST_FRACTION = 0.2
"""Of a training file that comes without a test file."""


@dataclass(frozen=True, kw_only=True)
class LIBSVMSet:
    """A data set of LIBSVM's page: its training file, its test file if any, and its features."""

    files: tuple[PublishedFile, ...]
    features: int


def _published(features: int, *names: str) -> LIBSVMSet:
    files = [PublishedFile(name=name, urls=(BASE + name,), sha256=None) for name in names]
    return LIBSVMSet(files=tuple(files), features=features)


SETS: dict[Name, LIBSVMSet] = {
    "a9a": _published(123, "a9a", "a9a.t"),
    "w8a": _published(300, "w8a", "w8a.t"),
    # Its test file has 677,399 documents: 6.6 GB when packed.
    "rcv1": _published(47_236, "rcv1_train.binary.bz2"),
}


@dataclass(frozen=True, kw_only=True)
class LIBSVM(Problem):
    """A linear model of sparse samples in two classes: logistic regression or a linear SVM.

    The score is weights * sample, without a constant; positive for the class whose label is the
    larger. The weights start at zero and their gradient is sparse. Inputs are (N, m, 2) float32:
    for each of at most m features that are not zero its index, from 0, and its value. Targets are
    0 and 1. There is no regularization.

    Args:
        name: the data set of LIBSVM's page, unless `train` is given.
        data_dir: folder with the files of `name`, in itself or in libsvm. Without it, the folder
            named by OFFBEAT_DATA is read in the same way, then ~/.cache/offbeat/libsvm, to which
            missing files are downloaded.
        train: a training file of your own.
        test: a test file of your own, which goes with `train`. Without it, and for rcv1, a fixed
            fifth of each class of the training file is the test part.
        features: how many there are; for a file of your own the largest index if not given.
        objective: the loss of a sample, y being -1 or 1 and s its score: "logistic",
            log(1 + exp(-y s)), or "hinge", max(0, 1 - y s).
        batch_size: samples of one minibatch.
        validation: fraction of the training part that is held out from training to choose by.

    Raises:
        ValueError: if a field is out of range, or does not go with the others.
    """

    imports: ClassVar[tuple[str, ...]] = ("sklearn.datasets",)
    summary: ClassVar[Summary | None] = Summary(
        samples="32,561 + 16,281", inputs="123, sparse", classes="2", source="csie.ntu.edu.tw"
    )

    name: Name = "a9a"
    data_dir: str | None = None
    train: str | None = None
    test: str | None = None
    features: int | None = None
    objective: Literal["logistic", "hinge"] = "logistic"
    batch_size: int = 32
    validation: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.validation)
        if self.test is not None and self.train is None:
            raise ValueError(f"test {self.test} needs a train file to go with")
        if self.train is not None and self.data_dir is not None:
            raise ValueError(
                f"data_dir {self.data_dir} is for the data sets by name, and train names a file: "
                "give one of the two"
            )
        if self.features is not None and self.features < 1:
            raise ValueError(f"features must be at least 1, not {self.features}")
        if self.features is not None and self.train is None:
            raise ValueError(
                f"{self.name} has {SETS[self.name].features} features: leave features out"
            )

    def model(self) -> nn.Module:
        return SparseLinear(self._features())

    def data(self) -> Data:
        return _load(self._source())[0]

    def available(self) -> bool:
        return self.train is not None or present(SETS[self.name].files, self._folders())

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.objective == "hinge":
            signs = 2 * targets.to(outputs.dtype) - 1
            return F.relu(1 - signs * outputs).mean()
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))

    def evaluate(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        with torch.no_grad():
            loss = self.loss(outputs, targets).item()
        return {"loss": loss, "accuracy": ((outputs > 0) == (targets > 0)).double().mean().item()}

    def _features(self) -> int:
        if self.train is None:
            return SETS[self.name].features
        return self.features if self.features is not None else _load(self._source())[1]

    def _folders(self) -> list[Path]:
        return folders_of("libsvm", self.data_dir, _SUBFOLDERS)

    def _source(self) -> "_Source":
        return _Source(
            name=self.name if self.train is None else None,
            data_dir=self.data_dir,
            train=self.train,
            test=self.test,
            features=self.features if self.train is not None else SETS[self.name].features,
            validation=self.validation,
        )


_SUBFOLDERS = (".", "libsvm")


def files_of(name: Name, data_dir: str | None) -> list[Path]:
    """The training file of a data set of LIBSVM's page, and its test file if it has one.

    Raises:
        DataError: if a file is missing from `data_dir`, damaged, or cannot be fetched.
    """
    return obtain("libsvm", SETS[name].files, data_dir=data_dir, subfolders=_SUBFOLDERS)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What the data depends on."""

    name: Name | None
    data_dir: str | None
    train: str | None
    test: str | None
    features: int | None
    validation: float

    def paths(self) -> list[Path]:
        if self.name is not None:
            return files_of(self.name, self.data_dir)
        return [Path(path).expanduser() for path in (self.train, self.test) if path is not None]


@lru_cache(maxsize=4)
def _load(source: _Source) -> tuple[Data, int]:
    """The data and its number of features."""
    rows: list[SparseRows] = []
    for path in source.paths():
        labels = rows[0].labels if rows else None
        rows.append(read_svmlight(path, source.features, labels))
    parts = [pack(part) for part in rows]
    whole, test = parts if len(parts) == 2 else hold_out(parts[0], TEST_FRACTION)
    train, held = hold_out(whole, source.validation)
    features = source.features or max(part.features for part in rows)
    return Data(train=train, validation=held, test=test), features
