"""What every problem offers: a model, data in three parts, a loss and an evaluation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


class DataError(ValueError):
    """A data set is missing, damaged or cannot be fetched; the text is one line for the user."""


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and what is to be predicted for them.

    Splits are shared between all users of a problem: read them, never write into them.

    Raises:
        ValueError: if the two differ in their number of samples.
    """

    inputs: Tensor  # (N, ...)
    targets: Tensor  # (N, ...)

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"a split needs one target a sample: {len(self.inputs)} inputs, "
                f"{len(self.targets)} targets"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: str) -> "Split":
        """The same samples on that device."""
        return Split(self.inputs.to(device), self.targets.to(device))

    def take(self, indices: Tensor) -> "Split":
        """The samples at `indices` (n,), copied."""
        return Split(self.inputs[indices], self.targets[indices])


@dataclass(frozen=True, eq=False)
class Data:
    """The parts of a data set: train on the first, choose by the second, report the third."""

    train: Split
    validation: Split
    test: Split

    def to(self, device: str) -> "Data":
        """The same data on that device."""
        return Data(self.train.to(device), self.validation.to(device), self.test.to(device))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `offbeat problems` says of a problem with its default settings."""

    samples: str
    """How many to train and validate with, and to test with."""
    inputs: str
    """Shape and kind of one sample."""
    classes: str
    source: str
    """Where the data comes from."""


class Problem(ABC):
    """Something to train: subclasses are frozen keyword-only dataclasses, pure data.

    Equal problems share one copy of their data. A subclass that has its own `__post_init__`
    calls this one.

    Raises:
        ValueError: if `batch_size` is below 1.
    """

    batch_size: int
    """Samples of one minibatch; a field of every subclass."""
    summary: ClassVar[Summary | None] = None
    imports: ClassVar[tuple[str, ...]] = ()
    """Modules that `data` takes long to import: the processes of a run share one import."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model, its random start drawn from torch's global generator."""

    @abstractmethod
    def data(self) -> Data:
        """The data, loaded at the first call of equal problems.

        Raises:
            DataError: if files are missing, damaged or cannot be fetched.
        """

    def available(self) -> bool:
        """Whether the files that `data` needs are on this machine; they may still be damaged."""
        return True

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a minibatch, a scalar; `torch.func` can differentiate and vmap it."""

    @abstractmethod
    def evaluate(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Mean metrics of a whole split: always "loss", and "accuracy" (0..1) of a classifier."""
